"""Speculation changes how fast a byte model writes and nothing of what it writes: verify is steps, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from byte_models import byte_model, echoing_model, talk
from engine_fakes import FakeBackend
from test_cpu_backend import SHAPES, inputs, lively, small

from netssmd.engine.byte_options import ByteOptions
from netssmd.engine.opening import OpenModel, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import NO_LIMITS, Limits, OutPacket, SessionInfo, Temperatures
from netssmd.model import cpu_backend
from netssmd.model.backend import MOST_AHEAD, Sampling
from netssmd.model.cpu_backend import CpuBackend, available_isas
from netssmd.packet.pcap import Packet

ISAS = available_isas()
compiled = pytest.mark.skipif(not ISAS, reason=cpu_backend.missing_reason)


def backends(config, tensors):
    """One of each kind there is, by name."""
    made = {f"{isa} {weights}": CpuBackend(config, tensors, slots=5, weights=weights, isa=isa, top_k=40, top_p=0.98)
            for isa in ISAS for weights in ("fp32", "bf16", "int8")}  # fmt: skip
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from netssmd.model.torch_backend import TorchBackend

    return made | {"torch": TorchBackend(config, tensors, 5, Sampling(top_k=40, top_p=0.98))}


class Draws:
    """What a slot would draw at each of its inputs, and with what numbers: inputs follow from what was drawn."""

    def __init__(self, config, seed: int, length: int, penalties: bool) -> None:
        rng = np.random.default_rng(seed)
        self.extra = inputs(config, length, seed)[:, 1:]
        self.uniforms = rng.random(length).astype(np.float32)
        self.temperatures = rng.choice(np.float32([0, 0.5, 1, 1.3]), length)
        lo = rng.integers(0, config.vocab_size // 2, length)
        self.ranges = np.stack([lo, lo + rng.integers(1, config.vocab_size // 2, length)], 1).astype(np.int32)
        n = config.vocab_size
        self.factors = rng.choice(np.float32([1, 1, 1.8, 0.7]), (length, n)) if penalties else None

    def line(self, at: int, before: int) -> list[int]:
        return [before, *self.extra[at].tolist()]

    def more(self, positions: list[int]) -> tuple:
        """ranges, uniforms, temperatures, factors, factors_at for these positions."""
        own = (self.ranges[positions], self.uniforms[positions], self.temperatures[positions])
        if self.factors is None:
            return own
        n = self.factors.shape[1]
        return *own, self.factors[positions].ravel(), np.arange(len(positions), dtype=np.int32) * n


def by_steps(backend, slot: int, draws: Draws, count: int) -> list[int]:
    tokens = [0]
    for at in range(count):
        row = np.array([draws.line(at, tokens[-1])], np.int32)
        tokens.append(int(backend.step(np.int32([slot]), row, *draws.more([at]))[0]))
    return tokens


def ahead_of(draws: Draws, truth: list[int], at: int, count: int, wrong: int) -> tuple[list[list[int]], list[int]]:
    """Inputs and drafts of one slot from position `at`: the truth, but a wrong draft at `wrong` inputs from there."""
    drafts = truth[at + 1 : at + 1 + count]
    if wrong < count:
        drafts[wrong] = (drafts[wrong] + 1) % 70
    lines = [draws.line(at + i, truth[at] if i == 0 else drafts[i - 1]) for i in range(count)]
    return lines, drafts


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(f"{k}{v}" for k, v in s.items()) or "plain")
@pytest.mark.parametrize("penalties", [False, True])
def test_verify_is_as_many_steps_to_the_last_bit(shape: dict, penalties: bool) -> None:
    """Tokens, how many stand, and the state behind them, with temperatures, top-k, top-p, ranges and penalties."""
    config = small(**shape)
    made = backends(config, lively(config))
    for name, backend in made.items():
        draws = Draws(config, 3, 40, penalties)
        truth = by_steps(backend, 0, draws, 24)
        state = backend.save_state(0)
        backend.reset(1)
        at = 0
        for count, wrong in ((5, 9), (1, 9), (6, 2), (4, 0), (7, 9), (3, 1), (9, 4)):
            count = min(count, 24 - at)
            lines, drafts = ahead_of(draws, truth, at, count, wrong)
            tokens, taken = backend.verify(
                np.int32([1]), np.int32([count]), np.int32(lines), np.int32(drafts),
                *draws.more(list(range(at, at + count))),
            )  # fmt: skip
            stood = min(count, wrong + 1)
            assert taken.tolist() == [stood], name
            assert tokens[:stood].tolist() == truth[at + 1 : at + 1 + stood], name
            at += stood
        assert at == 24 and backend.save_state(1) == state, name


@compiled
def test_slots_of_a_call_do_not_meet() -> None:
    """Several slots with different counts, more rows than go through the layers together."""
    config = small()
    for name, backend in backends(config, lively(config)).items():
        plan = [(40, 50), (1, 9), (30, 11), (2, 0), (MOST_AHEAD, 99)]
        draws = [Draws(config, 10 + i, 80, i % 2 == 0) for i in range(5)]
        truths = [by_steps(backend, i, d, 70) for i, d in enumerate(draws)]
        lines, drafts, more = [], [], []
        for (count, wrong), own, truth in zip(plan, draws, truths, strict=True):
            inputs_, drafts_ = ahead_of(own, truth, 0, count, wrong)
            lines += inputs_
            drafts += drafts_
            more.append((own, count))
        states = []
        for i, ((count, wrong), own) in enumerate(zip(plan, draws, strict=True)):
            backend.reset(i)
            by_steps(backend, i, own, min(count, wrong + 1))
            states.append(backend.save_state(i))
            backend.reset(i)
        joined = [np.concatenate(part) for part in zip(*(own.more(list(range(n)))[:3] for own, n in more), strict=True)]
        factors, at = [], []
        for own, n in more:
            at += [sum(map(len, factors)) + i * 75 for i in range(n)] if own.factors is not None else [-1] * n
            if own.factors is not None:
                factors.append(own.factors[:n].ravel())
        tokens, taken = backend.verify(
            np.arange(5, dtype=np.int32), np.int32([count for count, _ in plan]), np.int32(lines), np.int32(drafts),
            *joined, np.concatenate(factors), np.int32(at),
        )  # fmt: skip
        first = 0
        for i, (count, wrong) in enumerate(plan):
            stood = min(count, wrong + 1)
            assert taken[i] == stood and tokens[first : first + stood].tolist() == truths[i][1 : stood + 1], (name, i)
            assert backend.save_state(i) == states[i], (name, i)
            first += count


@compiled
def test_a_state_that_is_not_finite_stands_for_nothing() -> None:
    config = small()
    broken = lively(config)
    broken["backbone.embedding.weight"][7] = np.nan
    for name, backend in backends(config, broken).items():
        rows = np.int32([[3, 1, 2], [7, 1, 2], [4, 1, 2], [5, 1, 2]])
        for slots, counts, right in (([0], [4], [0]), ([1, 0], [1, 3], [1, 0]), ([2, 3], [2, 2], [0, 2])):
            for slot in range(4):
                backend.reset(slot)
            n = sum(counts)
            own = rows[:n] if slots != [1, 0] else rows[[0, 0, 1, 2]]
            ranges = np.int32([[9, 10]] * n)
            full = np.full(n, 0.5, np.float32)
            _, taken = backend.verify(np.int32(slots), np.int32(counts), own, np.int32([9] * n), ranges, full, full)
            assert taken.tolist() == right, (name, slots)


@compiled
@pytest.mark.parametrize("counts", [[0], [MOST_AHEAD + 1], [2, 2]])
def test_counts_that_do_not_fit_are_refused(counts: list[int]) -> None:
    config = small()
    for backend in backends(config, lively(config)).values():
        n = max(1, sum(counts) - len(counts) + 1)
        full = np.full(n, 0.5, np.float32)
        with pytest.raises(ValueError, match=r"counts|rows"):
            backend.verify(
                np.arange(len(counts), dtype=np.int32), np.int32(counts), np.zeros((n, 1), np.int32),
                np.zeros(n, np.int32), np.int32([[0, 9]] * n), full, full,
            )  # fmt: skip


# ---- sessions ------------------------------------------------------------------------------------------------------


class Recital(FakeBackend):
    """Each slot says what was written for it, if it may; `heard` is all that it was asked with, draw by draw."""

    def __init__(self, scripts: list[list[int]]) -> None:
        super().__init__(len(scripts))
        self.scripts = scripts
        self.call_rows = 0.0
        self.heard: list[list[tuple]] = [[] for _ in scripts]
        self.sizes: list[int] = []

    def _say(self, slot: int, *asked) -> int:
        row, (lo, hi), *_ = asked
        token = self.scripts[slot][len(self.heard[slot])]
        assert lo <= token < hi and (not self.heard[slot] or row[0] == self.scripts[slot][len(self.heard[slot]) - 1])
        self.heard[slot].append(asked)
        return token

    def _asked(self, at, rows, ranges, uniforms, temperatures, factors, factors_at):
        lo, hi = ranges[at].tolist()
        own = None if factors is None else factors[factors_at[at] : factors_at[at] + hi - lo].tolist()
        return rows[at].tolist(), (lo, hi), float(uniforms[at]), float(temperatures[at]), own

    def step(self, slots, rows, ranges, uniforms, temperatures, factors=None, factors_at=None):
        how = (rows, ranges, uniforms, temperatures, factors, factors_at)
        self.sizes.append(len(rows))
        return np.int32([self._say(slot, *self._asked(i, *how)) for i, slot in enumerate(slots.tolist())])

    def verify(
        self, slots, counts, rows, drafts, ranges, uniforms, temperatures, factors=None, factors_at=None
    ):  # fmt: skip
        how = (rows, ranges, uniforms, temperatures, factors, factors_at)
        tokens, taken, at = np.full(len(rows), -1, np.int32), np.zeros(len(slots), np.int32), 0
        self.sizes.append(len(rows))
        for i, (slot, count) in enumerate(zip(slots.tolist(), counts.tolist(), strict=True)):
            for j in range(at, at + count):
                tokens[j] = self._say(slot, *self._asked(j, *how))
                taken[i] += 1
                if tokens[j] != drafts[j]:
                    break
            at += count
        return tokens, taken


def many_flows(seed: int) -> list[Packet]:
    """Conversations between other ends, their packets one after the other or mixed."""
    flows = [[_renamed(p, seed * 10 + i) for p in talk()] for i in range(4)]
    mixed = [p for pair in zip(flows[2], flows[3], strict=True) for p in pair]
    return [*flows[0], *flows[1], *mixed]


def _renamed(packet: Packet, number: int) -> Packet:
    data = bytearray(packet.data)
    for at, port in ((34, data[34:36]), (36, data[36:38])):
        if int.from_bytes(port, "big") > 1023:
            data[at : at + 2] = (40_000 + number).to_bytes(2, "big")
    return packet._replace(data=bytes(data))


def told(opened: OpenModel, scripts: list[list[int]], call_rows: float, group: int = 4, limits: Limits = NO_LIMITS):
    """Sessions that say these scripts: backend, scheduler, packets of each, numbers drawn by each."""
    backend = Recital(scripts)
    backend.call_rows = call_rows
    scheduler = Scheduler(backend, group, speculate=True)
    infos = [SessionInfo(i, "amazon", {}, 5 + i, 1_000_000_000) for i in range(len(scripts))]
    sessions = [opened.session(info, address_plan(), limits, Temperatures(0.7)) for info in infos]
    for session in sessions:
        scheduler.add(session)
    packets: list[list[OutPacket]] = [[] for _ in scripts]
    while (result := scheduler.step()) is not None:
        for packet in result[0]:
            packets[packet.session.number].append(packet)
    counted = [(s.reason, s.tokens, s.packets, s.clock_ns, s.stream.counter) for s in sessions]
    return backend, scheduler, packets, counted


@pytest.mark.parametrize("options", [ByteOptions(), ByteOptions(penalty=1.8), ByteOptions(penalty=1.8, window=150)])
@pytest.mark.parametrize("framed", [True, False])
def test_a_session_is_asked_the_same_and_says_the_same(tmp_path: Path, options: ByteOptions, framed: bool) -> None:
    """Each draw has the input, range, number, temperature and penalties that it has without speculation."""
    opened = open_model(str(byte_model(tmp_path / "model", framed=framed)), options=options)
    end = opened.vocabulary.end
    scripts = [[*opened.encode_prompt(many_flows(seed)).tokens[:-1], end] for seed in range(2)]
    plain, _, packets, counted = told(opened, scripts, 0)
    assert [len(p) for p in packets] == [40] * 2 and counted[0][0] == "end"
    for call_rows in (1.0, 1000.0):
        ahead, scheduler, same, counts = told(opened, scripts, call_rows)
        assert ahead.heard == plain.heard and same == packets and counts == counted
        assert scheduler.tokens == sum(map(len, scripts)) == scheduler.accepted + len_of_calls(ahead, scheduler)
    assert scheduler.steps * 3 < len(scripts[0]) and scheduler.accepted > 0.8 * scheduler.tokens
    assert max(ahead.sizes) <= MOST_AHEAD


def len_of_calls(backend: Recital, scheduler: Scheduler) -> int:
    """Inputs that were not drafts."""
    return sum(backend.sizes) - scheduler.drafted


def test_limits_cut_where_they_would(tmp_path: Path) -> None:
    """A session that ends inside what was accepted takes nothing of the rest."""
    opened = open_model(str(byte_model(tmp_path / "model")))
    script = list(opened.encode_prompt(many_flows(1)).tokens)
    for limits in (Limits(tokens=95 * 7 + 33), Limits(packets=9), Limits(duration_ns=20_000_000)):
        _, _, packets, counted = told(opened, [script], 0, limits=limits)
        _, _, same, counts = told(opened, [script], 1000, limits=limits)
        assert same == packets and [c[:4] for c in counts] == [c[:4] for c in counted] and packets[0]


@compiled
def test_generated_packets_are_the_same_with_a_real_backend(tmp_path: Path) -> None:
    """A model that mostly repeats itself, alone and in groups, after prompts, with the paper's sampling: same packets,
    and drafts that came true."""
    opened = open_model(str(echoing_model(tmp_path / "model")), "cpu", 25, 0.95, options=ByteOptions(penalty=1.1))
    prompt = opened.encode_prompt(talk())
    limits = Limits(tokens=95 * 25)

    def generated(call_rows: float, group: int) -> tuple[list, Scheduler]:
        scheduler = Scheduler(Costing(opened.backend(3), call_rows), group, speculate=True)
        for i in range(3):
            info = SessionInfo(i, "amazon", {}, 5 + i, 1_000_000_000)
            own = prompt if i else None
            scheduler.add(opened.session(info, address_plan(), limits, Temperatures(0.9), prompt=own))
        sessions, packets = scheduler.sessions(), []
        while (result := scheduler.step()) is not None:
            packets += result[0]
        told = [(s.malformed(), s.tokens, s.reason) for s in sessions]
        return [sorted(packets, key=lambda p: (p.session.number, p.ts_ns)), told], scheduler

    plain, stepping = generated(0, 3)
    assert sum(plain[1][0][0].values()) > 10 and not stepping.drafted
    for call_rows, group in ((2.0, 3), (12.0, 1), (100.0, 2)):
        same, scheduler = generated(call_rows, group)
        assert same == plain
        assert 0.5 * scheduler.drafted < scheduler.accepted < scheduler.drafted
        assert scheduler.steps < stepping.steps


class Costing:
    """A backend whose calls are said to cost something else."""

    def __init__(self, backend: CpuBackend, call_rows: float) -> None:
        self.call_rows = call_rows
        self.slots, self.reset, self.prefill = backend.slots, backend.reset, backend.prefill
        self.step, self.verify = backend.step, backend.verify
