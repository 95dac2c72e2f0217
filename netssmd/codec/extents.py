"""How many packets a new flow is to have, as a member of EXTENT.

A session that knows its numbers of packets and flows shares them out: `left` packets that no flow has had or owes yet
go to `flows`, the new one and those to come. So most flows are told by their share, which is learned once for sessions
of all sizes; a handful of packets (a query and its answer) is told as it is::

    members                         packets
    0 .. FEW - 1                    1 .. FEW
    FEW .. REST - 1                 more: so many times a fair share (left / flows), four members an octave
    REST                            at least half of what is left, and all but TAIL for each flow to come
    UNTOLD                          not known: a recording under way, or one that was cut

The last flow has the rest, so that what is drawn adds up.
"""

from __future__ import annotations

from typing import Final

FEW: Final = 16
OCTAVES: Final = (-8, 6)  # of a fair share
STEPS: Final = 4  # members an octave
TAIL: Final = 8  # packets
REST: Final = FEW + STEPS * (OCTAVES[1] - OCTAVES[0])
UNTOLD: Final = REST + 1
COUNT: Final = UNTOLD + 1

_FACTORS: Final = [2.0 ** (OCTAVES[0] + step / STEPS) for step in range(REST - FEW + 1)]


def extent_member(packets: int, left: int, flows: int) -> int:
    """How `packets` (at least one, at most `left`) are told."""
    if packets <= FEW:
        return max(1, packets) - 1
    if packets >= _least_rest(left, flows):
        return REST
    member = REST - 1
    while member > FEW and _least_share(member, left, flows) > packets:
        member -= 1
    return member


def extent_bounds(member: int, left: int, flows: int) -> tuple[int, int]:
    """What a member tells: from, to (exclusive)."""
    if member < FEW:
        return member + 1, member + 2
    if member == REST:
        least = _least_rest(left, flows)
        return least, max(least, left - flows + 1) + 1
    least = _least_share(member, left, flows)
    return least, max(least + 1, _least_share(member + 1, left, flows))


def kept_to(packets: int, left: int, flows: int, shortest: int) -> int:
    """A drawn number of packets, cut to what leaves one for each flow to come, or made `shortest`."""
    return max(shortest, min(packets, max(FEW, left - flows + 1)))


def drawable_extents(left: int, flows: int, shortest: int) -> tuple[int, int]:
    """Members (from, to) that may be drawn: the last flow has the rest, a few packets are no more than leaves one for
    each flow to come, and no less than `shortest`; `kept_to` holds shares to that."""
    most = left - flows + 1
    if flows <= 1 and most > FEW:
        return REST, REST + 1
    most = max(1, shortest, most)
    floor = most if flows <= 1 else max(1, shortest)
    return min(floor, FEW) - 1, REST + 1 if most > FEW else most


def _least_rest(left: int, flows: int) -> int:
    return max(FEW + 1, left - TAIL * (flows - 1), (left + 1) // 2)


def _least_share(member: int, left: int, flows: int) -> int:
    """The fewest packets of a share; the first member takes all that is less."""
    return FEW + 1 if member == FEW else max(FEW + 1, int(_FACTORS[member - FEW] * max(1, left) / flows) + 1)
