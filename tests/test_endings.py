"""How drawn flows end: whatever is drawn, a connection has as many packets as its label's, goes on without SYN and RST,
and its last packets close or reset it; a recording is left as it is."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from tiny_model import tiny_vocabulary

from netssmd.codec import context as cx
from netssmd.codec import vocab as v
from netssmd.codec.decoder import Decoder, Habits
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream
from netssmd.packet.wire import ACK, FIN, RST, SYN, TCP

Said = dict[int, list[tuple[int, int, int]]]  # by flow: direction, flags, payload bytes of each packet


def drawn(seed: int, reset_share: float, may_reset: bool, shortest: int = 0, fin_behind_rst: float = 0.0) -> Said:
    """A session of tokens drawn evenly from what may be drawn: TCP flows of up to 30 packets."""
    rng = random.Random(seed)
    identities = FreshIdentities(address_plan(), seed, Stream(seed))
    decoder = Decoder(
        tiny_vocabulary(), identities, mtu=1500, max_flows=64, extent=(400, cx.UNKNOWN, 25),
        habits=Habits(reset_share, may_reset, shortest, fin_behind_rst=fin_behind_rst),
    )  # fmt: skip
    said: Said = defaultdict(list)
    while not decoder.ended:
        allowed = range(decoder.lo, decoder.hi)
        if decoder.field == v.WHO:
            new, end = decoder.base + v.WHO_NEW, decoder.base + v.WHO_END
            known = [token for token in allowed if token not in (new, end)]
            opens = new in allowed and (not known or rng.random() < 0.04)
            token = new if opens else rng.choice(known or [end])
        elif decoder.field == v.SERVICE:
            token = decoder.lo  # TCP over IPv4
        elif decoder.field == v.EXTENT:
            token = min(max(decoder.lo, decoder.base + rng.randint(1, 30)), decoder.hi - 1)
        elif decoder.field == v.TCP_SHAPE and not side(decoder).spoke:
            flags = v.FLAG_CLASSES.index(SYN | ACK if decoder.direction else SYN)
            token = decoder.base + 36 * flags
        elif decoder.field == v.IAT:
            token = decoder.lo + rng.randrange(100)
        else:
            token = rng.choice(allowed)
        decoded = decoder.feed(token)
        if decoded is not None and decoded.headers.transport == TCP:
            said[decoded.flow].append((decoded.direction, decoded.headers.flags, decoded.headers.payload_len))
    return said


def side(decoder: Decoder) -> cx.Side:
    assert decoder.flow is not None
    return decoder.flow.sides[decoder.direction]


def connections(
    seed: int, reset_share: float, may_reset: bool, fin_behind_rst: float = 0.0
) -> list[list[tuple[int, int, int]]]:
    """The packets of each, from the one on that completes its handshake."""
    def opens(packets: list[tuple[int, int, int]]) -> bool:
        if [(direction, flags) for direction, flags, _ in packets[:2]] != [(0, SYN), (1, SYN | ACK)]:
            return False
        return len(packets) > 2 and packets[2][0] == 0 and not packets[2][1] & (SYN | RST | FIN)

    said = drawn(seed, reset_share, may_reset, fin_behind_rst=fin_behind_rst).values()
    return [packets[2:] for packets in said if opens(packets)]


def test_connections_are_closed_by_both_sides_and_acknowledged() -> None:
    seen = 0
    for seed in range(40):
        for packets in connections(seed, 0.0, False):
            seen += 1
            assert not any(flags & (SYN | RST) for _, flags, _ in packets)
            closed = {0: False, 1: False}
            for direction, flags, length in packets:
                if closed[direction]:  # only acknowledges
                    assert flags == ACK and length == 0
                closed[direction] |= flags & FIN != 0
            assert closed == {0: True, 1: True}
            assert sum(flags & FIN != 0 for _, flags, _ in packets) == 2 and not packets[-1][1] & FIN
    assert seen > 60


def test_labels_that_reset_do_so_in_their_share() -> None:
    def unclosed(packets: list[tuple[int, int, int]]) -> bool:
        return not any(flags & FIN for _, flags, _ in packets)

    every = [packets for seed in range(60) for packets in connections(seed, 1.0, True)]
    assert len(every) > 50 and all(unclosed(packets) and packets[-1][1] & RST for packets in every)
    some = [unclosed(packets) for seed in range(90) for packets in connections(seed, 0.3, True)]
    assert len(some) > 100 and 0.15 < sum(some) / len(some) < 0.45


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_peer_of_a_side_that_closed_and_reset_closes_too_where_the_labels_do(share: float) -> None:
    reset, both = 0, 0
    for seed in range(90):
        for packets in connections(seed, 0.0, True, share):
            fins = [direction for direction, flags, _ in packets if flags & FIN]
            resets = [(direction, i) for i, (direction, flags, _) in enumerate(packets) if flags & RST]
            if fins and resets and resets[0][0] == fins[0] and 1 - fins[0] not in [
                direction for direction, flags, _ in packets[: resets[0][1]] if flags & FIN
            ]:  # by the side that had closed, alone so far
                reset += 1
                both += len(set(fins)) == 2
    assert reset > 15 and (both > 0.9 * reset if share else both < 0.5 * reset)


@pytest.mark.parametrize("shortest", [0, 10, 1000])
def test_no_tcp_flow_is_to_be_shorter_than_its_labels(shortest: int) -> None:
    identities = FreshIdentities(address_plan(), 1, Stream(1))
    decoder = Decoder(
        tiny_vocabulary(), identities, extent=(5_000, cx.UNKNOWN, 3), habits=Habits(0.0, shortest=shortest)
    )
    for service, least in ((0, max(1, shortest)), (1, 1)):  # TCP, UDP
        decoder.feed(decoder.base + v.WHO_NEW)
        decoder.feed(decoder.base + service)
        while decoder.field != v.EXTENT:
            decoder.feed(decoder.lo)
        decoder.feed(decoder.lo)
        assert decoder.flow is not None and decoder.flow.extent == least
        while decoder.field != v.WHO:
            decoder.feed(decoder.lo)


def test_a_flow_of_which_nothing_is_known_ends_anyhow() -> None:
    endings = [packets[-1][1] for seed in range(20) for packets in drawn(seed, cx.UNKNOWN, True).values()]
    assert sum(flags & (FIN | RST) == 0 for flags in endings) > len(endings) / 3
