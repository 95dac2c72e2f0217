"""The stages of a TCP flow: handshake, transfer, teardown (section 5.1.1's sub-datasets).

In: the packets of one flow, in order. Out: those of one phase, led by the last packet of the phase before, because that
is what the phase's model is given to go on from.

    handshake  SYN .. the originator's first ACK          transfer  everything up to the first FIN or RST
    teardown   the first FIN or RST and what comes after

A flow that is met in the middle begins with its transfer. A phase that a flow does not have gives nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from netssmd.packet.wire import ACK, FIN, RST, SYN, TCP, Headers, parse

PHASES: Final = ("handshake", "transfer", "teardown")


class PhaseTracker:
    """Names the phase of each packet of one flow."""

    def __init__(self) -> None:
        self.phase = 0
        self._answered = False

    def feed(self, headers: Headers) -> int:
        """The packet's phase, an index into PHASES."""
        flags = headers.flags if headers.transport == TCP else 0
        if flags & (FIN | RST):
            self.phase = 2
        elif self.phase == 0 and not flags & SYN:
            self.phase = 1  # from the next packet on, if this one completes the handshake
            return 0 if self._answered and flags & ACK and headers.payload_len <= 0 else 1
        self._answered |= flags & (SYN | ACK) == SYN | ACK
        return self.phase


def cut_phase(packets: Sequence[Any], phase: str) -> list[Any]:
    """The packets (ts_ns, data, orig_len) of one phase of a flow, led by the packet before them."""
    tracker = PhaseTracker()
    wanted = PHASES.index(phase)
    phases = [tracker.feed(parse(data, orig_len)) for _, data, orig_len in packets]
    if wanted not in phases:
        return []
    first = phases.index(wanted)
    last = len(phases) - phases[::-1].index(wanted)
    return list(packets[max(0, first - 1) : last])
