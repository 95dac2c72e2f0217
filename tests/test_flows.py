"""Five-tuples: who opened a flow, which way a packet goes, bounded memory, single flows out of a capture."""

from __future__ import annotations

from traces import BYE, TALK, headers

from netssmd.codec.flows import FlowSplitter, FlowTable, flow_key


def found(table: FlowTable, line: str, port: int = 40000) -> tuple[int, int, bool]:
    h = headers(line, port)
    key = flow_key(h)
    assert key is not None
    return table.find(h, key)


def test_a_conversation_is_one_flow_from_its_originator() -> None:
    table = FlowTable()
    for i, line in enumerate(TALK + BYE):
        assert found(table, line) == (0, 0 if line[0] == "A" else 1, i == 0)
    assert found(table, "A S 0 0", 40001) == (1, 0, True)


def test_met_in_the_middle_the_responder_is_who_speaks_from_a_known_port() -> None:
    assert found(FlowTable(), "B S. 0 1")[1] == 1
    assert found(FlowTable(), "B P. 1 101 1000")[1] == 1
    assert found(FlowTable(), "A . 101 1001")[1] == 0


def test_the_flow_silent_for_longest_is_forgotten() -> None:
    table = FlowTable(max_flows=2)
    for port in (1111, 2222):
        found(table, "A S 0 0", port)
    found(table, "B S. 0 1", 1111)
    found(table, "A S 0 0", 3333)  # 2222 goes
    assert found(table, "A . 1 1", 1111) == (0, 0, False)
    assert found(table, "A . 1 1", 2222) == (3, 0, True)
    assert len(table._flows) == 2


def split(max_flows: int, max_held: int, packets: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    splitter: FlowSplitter[tuple[str, int]] = FlowSplitter(max_flows, max_held)
    out = []
    for packet in packets:
        key = flow_key(headers(*packet))
        assert key is not None
        out += splitter.add(key, packet)
        assert splitter.held <= max_held and len(splitter._flows) <= max_flows
    return out + splitter.rest()


def test_flows_are_split_whole_while_there_is_room() -> None:
    packets = [(line, port) for line in TALK for port in (1111, 2222, 3333)]
    whole = split(10, 1000, packets)
    assert whole == [[(line, port) for line in TALK] for port in (1111, 2222, 3333)]


def test_without_room_flows_come_out_in_pieces_and_nothing_is_lost() -> None:
    packets = [(line, port) for line in TALK for port in (1111, 2222, 3333)]
    for most, held in ((2, 1000), (10, 5), (1, 3)):
        pieces = split(most, held, packets)
        assert sorted(p for piece in pieces for p in piece) == sorted(packets)
        assert all(len({port for _, port in piece}) == 1 for piece in pieces)
        assert len(pieces) > 3
    alone = split(4, 3, [(line, 1111) for line in TALK])
    assert [len(piece) for piece in alone] == [3, 3, 1]
