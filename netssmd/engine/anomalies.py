"""The anomaly dial: chosen defects planted into what a session sends, each at its rate, each told.

In: a packet's headers before they are rendered, the session's checker. Out: which mutant of packet/mutants.py it is to
have, if any. A rate is the share of the packets that can have the defect. The codec never sees what was planted: the
session goes on as if its packets had left as they were, like traffic behind something broken.

The choice has a random stream of its own, so that the rest of a session is the same with and without.
"""

from __future__ import annotations

from netssmd.engine.sampling import Stream
from netssmd.packet.compliance import Checker, Flow, Side
from netssmd.packet.mutants import BY_NAME, Mutant, copy_of
from netssmd.packet.wire import TCP, Headers

MOST_OWED = 1024  # flows that have not spoken since a packet of theirs was left out
_NOBODY = Side()


class Planter:
    """One session's defects. Plain data.

    rates: mutant name -> share of fitting packets. stream: where the choice comes from. `checker` knows the flows as
    the session means them, without its defects; `planted` counts by name.
    """

    __slots__ = ("checker", "names", "owed", "planted", "rates", "stream")

    def __init__(self, rates: dict[str, float], stream: Stream, max_flows: int) -> None:
        self.checker: Checker = Checker(max_flows=max_flows)
        self.planted: dict[str, int] = {}
        self.names: list[str] = list(rates)
        self.rates: list[float] = list(rates.values())
        self.stream: Stream = stream
        self.owed: dict[int, str] = {}  # flow -> a defect that left no packet: its next one tells of it

    def plant(self, headers: Headers, ts_ns: int, number: int) -> tuple[Headers, Mutant | None]:
        """What goes out in place of these headers of flow `number`, and the defect that it has."""
        flow: Flow | None = None
        if headers.transport == TCP:
            flow = self.checker.find(headers.src, headers.sport, headers.dst, headers.dport)
        side = peer = _NOBODY
        if flow is not None:
            mine = headers.src == flow.key[0] and headers.sport == flow.key[1]
            side, peer = (flow.originator, flow.responder) if mine else (flow.responder, flow.originator)
        chosen: Mutant | None = None
        for name, rate in zip(self.names, self.rates):
            mutant = BY_NAME[name]
            if mutant.fits(headers, flow, side, peer) and self.stream.uniform() < rate:
                chosen = mutant
                break
        sent = headers
        if chosen is not None:
            self.planted[chosen.name] = self.planted.get(chosen.name, 0) + 1
            if chosen.change is not None:
                sent = copy_of(headers)
                chosen.change(sent, flow, side, peer)
            if chosen.drop:
                self.owed[number] = chosen.name
                if len(self.owed) > MOST_OWED:
                    del self.owed[next(iter(self.owed))]
        self.checker.observe(headers, ts_ns)
        return sent, chosen

    def told(self, number: int, mutant: Mutant | None) -> str:
        """What the ledger says of a packet of flow `number` that leaves: its defect, or that of one before it that was
        left out."""
        owed = self.owed.pop(number, "")
        return mutant.name if mutant is not None else owed
