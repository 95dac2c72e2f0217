"""Guide mode: whatever is drawn under its masks raises none of the findings that it guards; what it takes away is
counted; without it nothing changes."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import numpy as np
import pytest
from engine_fakes import FakeBackend, fake_session
from tiny_model import tiny_model, tiny_vocabulary

from netssmd.codec import vocab as v
from netssmd.codec.decoder import Decoder
from netssmd.engine.guide import GUARDED, RULES, Guide
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.opening import MAX_FLOWS, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Limits, Session, SessionInfo
from netssmd.errors import CheckpointError
from netssmd.packet.compliance import FINDINGS, INDEX, Checker


def random_session(seed: int, packets: int, guided: float, resets: bool = False) -> dict[str, int]:
    """Findings of a session whose tokens are drawn evenly from what is allowed, mostly for the flows that there are.
    `guided`: the share of the draws that the guide sees."""
    rng = random.Random(seed)
    identities = FreshIdentities(address_plan(), seed, Stream(seed))
    decoder = Decoder(tiny_vocabulary(), identities, mtu=1500, max_flows=64)
    checker, guide, now_ns = Checker(max_flows=64), Guide(resets), 0
    made = 0
    while made < packets and not decoder.ended:
        mask = guide.mask(decoder, checker) if rng.random() < guided else b""
        allowed = list(range(decoder.lo, decoder.hi))
        if mask:
            factors = array("f", mask)
            assert len(factors) == len(allowed) and set(factors) <= {0.0, 1.0} and any(factors)
            allowed = [token for token, factor in zip(allowed, factors) if factor]
        if decoder.field == v.WHO and made < packets - 1:
            allowed = [token for token in allowed if token != decoder.lo + v.WHO_END]
            if len(allowed) > 2 and rng.random() < 0.95:
                allowed = allowed[1:7]  # one of the flows that spoke last
        if decoder.field == v.SERVICE and rng.random() < 0.9:
            allowed = [decoder.lo]  # TCP over IPv4
        if decoder.field == v.TCP_SHAPE and rng.random() < 0.99:  # seldom an RST, or no flow gets anywhere
            allowed = [t for t in allowed if not 72 <= t - decoder.lo < 144] or allowed
        if decoder.field == v.IAT:
            allowed = allowed[:100]
        decoded = decoder.feed(rng.choice(allowed))
        if decoded is not None:
            made += 1
            now_ns += max(0, decoded.gap_ns)
            checker.observe(decoded.headers, now_ns)
    return {f.name: n for f, n in zip(FINDINGS, checker.finish().in_packets) if n}


def test_random_tokens_under_the_masks_raise_no_guarded_finding() -> None:
    free: dict[str, int] = {}
    for seed in range(12):
        for name, count in random_session(seed, 250, guided=0.7).items():
            free[name] = free.get(name, 0) + count
        found = random_session(seed, 250, guided=1)
        assert not set(found) & set(GUARDED), (seed, found)
    assert len(set(GUARDED) & set(free)) >= 8  # what it prevents does happen


def run(folder: str, guided: bool, seed: int) -> tuple[Session, int, list[tuple[int, bytes]]]:
    model = open_model(folder, "cpu")
    session = model.session(SessionInfo(0, "web", {}, seed, 0), address_plan(), Limits(300))
    session.checker = Checker(max_flows=MAX_FLOWS)
    if guided:
        session.guide = Guide(resets=False)
    scheduler = Scheduler(model.backend(2))
    scheduler.add(session)
    packets: list[tuple[int, bytes]] = []
    found = 0
    while (result := scheduler.step()) is not None:
        for packet in result[0]:
            packets.append((packet.ts_ns, packet.data))
            found |= packet.found
    return session, found, packets


def test_a_model_is_guided_and_every_intervention_counted() -> None:
    total = Guide(False)
    for seed in range(4):
        session, found, _ = run("embedded", True, seed)
        assert not [name for name in GUARDED if found >> INDEX[name] & 1]
        assert session.guide is not None
        total.add(session.guide)
    assert sum(total.interventions) > 0
    for interventions, removed in zip(total.interventions, total.removed):
        assert abs(interventions - removed) < 6 + 5 * removed**0.5  # a draw is turned away as often as it was likely
    line = total.line(1000)
    assert line.startswith(f"Guide: {sum(total.interventions)} interventions, ") and "per 100 packets" in line
    assert set(total.interventions_by_rule()) == set(total.removed_by_rule()) == set(RULES)


def test_the_checker_alone_changes_nothing() -> None:
    def plain(seed: int) -> list[tuple[int, bytes]]:
        model = open_model()
        session = model.session(SessionInfo(0, "web", {}, seed, 0), address_plan(), Limits(300))
        scheduler = Scheduler(model.backend(2))
        scheduler.add(session)
        packets = []
        while (result := scheduler.step()) is not None:
            packets += [(packet.ts_ns, packet.data) for packet in result[0]]
        return packets

    assert run("embedded", False, 3)[2] == plain(3) != run("embedded", True, 3)[2]


def test_a_backend_is_told_of_masks_only_where_there_are_some() -> None:
    scheduler = Scheduler(FakeBackend(4))  # its `step` knows no factors
    for i in range(3):
        session = fake_session(i)
        session.checker = Checker()
        session.guide = Guide(False) if i else None  # what it draws are no tokens of the codec: no masks
        scheduler.add(session)
    while scheduler.step() is not None:
        pass


def test_conduct_of_a_model_folder(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    assert open_model(str(folder)).guide("web").resets  # nobody knows: not forbidden
    (folder / "conduct.json").write_text('{"resets": {"dns": 0.0}}')
    model = open_model(str(folder))
    assert (model.guide("web").resets, model.guide("dns").resets) == (False, True)
    for text in (
        "{", "[]", '{"resets": ["dns"]}', '{"resets": {"dns": 2}}', '{"shortest": {"dns": 0}}',
        '{"tokens": {"dns": [1]}}', '{"tokens": {"dns": [[0, 1000000]]}}', '{"extents": {"dns": [[1, 2]]}}',
        '{"extents": {"dns": [[1, 2, "x"]]}}',
    ):  # fmt: skip
        (folder / "conduct.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"conduct\.json: .*share of its connections"):
            open_model(str(folder))


def test_masks_are_bounded_in_kind() -> None:
    from netssmd.engine import guide

    for seed in range(3):
        random_session(seed, 200, guided=1)
    assert len(guide._shapes) < 64
    assert all(np.frombuffer(mask, np.float32).any() for mask in guide._shapes.values() if mask)  # empty: no mask
