"""Stand-ins for codec and model: a three-token packet language and a backend whose draws depend on all it was told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netssmd.engine.identities import FreshIdentities
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.session import NO_LIMITS, Limits, Render, Session, SessionInfo, Temperatures
from netssmd.packet import wire
from netssmd.packet.render import render

END, WHO, GAP, LENGTH, SIZE = 0, 0, 8, 24, 88
GAPS_NS = [0, 1_000, 50_000, 200_000, 1_000_000, 5_000_000, 10_000_000, 20_000_000] * 2


@dataclass(frozen=True, slots=True)
class FakeDecoded:
    gap_ns: int
    headers: wire.Headers
    flow: int
    direction: int
    new_flow: bool
    kind: int = 0


class FakeDecoder:
    """WHO (END, or one of 7 flows) then GAP then LENGTH, then again. END is legal after `least` packets."""

    def __init__(self, source: FreshIdentities, least: int = 0, endless: bool = False) -> None:
        self.source = source
        self.least = least
        self.endless = endless
        self.packets = 0
        self.part: list[int] = []
        self.flows: dict[int, tuple[bytes, bytes, int]] = {}
        self.ended = False

    @property
    def base(self) -> int:
        return self.lo

    @property
    def lo(self) -> int:
        first = WHO + 1 if self.endless or self.packets < self.least else WHO
        return (first, GAP, LENGTH)[len(self.part)]

    @property
    def hi(self) -> int:
        return (GAP, LENGTH, SIZE)[len(self.part)]

    @property
    def features(self) -> list[int]:
        return [100 + len(self.part), 110 + self.packets % 5]

    def feed(self, token: int) -> FakeDecoded | None:
        assert self.lo <= token < self.hi and not self.ended
        if not self.part and token == END:
            self.ended = True
            return None
        self.part.append(token)
        if len(self.part) < 3:
            return None
        (who, gap, length), self.part = self.part, []
        self.packets += 1
        new = who not in self.flows
        if new:
            self.flows[who] = (self.source.host(4, 0, 0)[0], self.source.host(4, 0, 1)[0], self.source.port(0))
        headers = wire.Headers()
        headers.link = bytes(12) + b"\x08\x00"
        headers.version, headers.transport, headers.protocol = wire.IPV4, wire.UDP, wire.UDP
        headers.src, headers.dst, headers.sport = self.flows[who]
        headers.dport, headers.payload_len = 53, (length - LENGTH) * 4
        return FakeDecoded(GAPS_NS[gap - GAP] + self.source.within(10), headers, who, 0, new)


class FakeBackend:
    """Draws uniformly in the range from the uniform and a hash of every row the slot has seen."""

    def __init__(self, slots: int = 16) -> None:
        self.slots = slots
        self.state = [0] * slots
        self.calls: list[int] = []
        self.prefilled: list[int] = []

    def reset(self, slot: int) -> None:
        self.state[slot] = 1

    def save_state(self, slot: int) -> bytes:
        return self.state[slot].to_bytes(4, "big")

    def load_state(self, slot: int, state: bytes) -> None:
        self.state[slot] = int.from_bytes(state, "big")

    def _see(self, slot: int, row: list[int]) -> None:
        for value in row:
            self.state[slot] = (self.state[slot] * 1_000_003 + value + 1) & 0xFFFFFFFF

    def prefill(self, slot: int, rows: np.ndarray) -> None:
        assert rows.dtype == np.int32 and rows.ndim == 2
        self.prefilled.append(len(rows))
        for row in rows.tolist():
            self._see(slot, row)

    def step(self, slots, rows, ranges, uniforms, temperatures):  # type: ignore[no-untyped-def]
        self.calls.append(len(slots))
        assert len(set(slots.tolist())) == len(slots) == len(rows) == len(ranges) == len(uniforms) == len(temperatures)
        assert (slots.dtype, rows.dtype, ranges.dtype) == (
            np.int32,
        ) * 3 and uniforms.dtype == temperatures.dtype == np.float32
        drawn = []
        for slot, row, (lo, hi), uniform in zip(slots.tolist(), rows.tolist(), ranges.tolist(), uniforms.tolist()):
            self._see(slot, row)
            point = (uniform + self.state[slot] / 2**32) % 1.0
            drawn.append(min(hi - 1, lo + int(point * (hi - lo))))
        return np.array(drawn, dtype=np.int32)


def fake_session(
    number: int = 0,
    start_ns: int = 0,
    seed: int = 1,
    limits: Limits = NO_LIMITS,
    least: int = 20,
    endless: bool = False,
    prompt: list[int] | None = None,
    temperatures: Temperatures | None = None,
    render_with: Render = render,
) -> Session:
    key = derive(seed, "session", number)
    source = FreshIdentities(address_plan(), number, Stream(derive(key, "identities")))
    info = SessionInfo(number, f"label-{number % 3}", {}, key, start_ns)
    decoder = FakeDecoder(source, least, endless)
    stream = Stream(derive(key, "tokens"))
    return Session(info, decoder, stream, [90 + number % 3], END, render_with, limits, temperatures, prompt or [])
