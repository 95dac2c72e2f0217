"""Names and addresses of a session: a question's name has the asked length, its answer's address is where the next new
server is, and what that server is called is the name that was asked for, in every session."""

import pytest

from netssmd.engine.identities import ARP_PORT, UNICAST, FreshIdentities
from netssmd.engine.names import LENGTHS, ServiceNames, wire_name
from netssmd.engine.plan import CLIENT, SERVER, AddressPlan, address_plan
from netssmd.engine.sampling import Stream, derive, permute, unpermute

PLAN = address_plan(seed=5)


def session(number: int = 0, plan: AddressPlan = PLAN) -> FreshIdentities:
    return FreshIdentities(plan, number, Stream(derive(9, "session", number)))


def text(wire: bytes) -> bytes:
    labels, at = [], 0
    while wire[at]:
        labels.append(wire[at + 1 : at + 1 + wire[at]])
        at += wire[at] + 1
    assert at + 1 == len(wire)
    return b".".join(labels)


def test_services_have_names_of_many_lengths_and_none_has_two() -> None:
    names = ServiceNames(20_000, b"example.net", seed=3)
    made = [names.name(i) for i in range(20_000)]
    assert len(set(made)) == 20_000 and made == [names.name(i) for i in range(20_000)]
    assert all(name.endswith(b".example.net") and len(max(name.split(b"."), key=len)) < 64 for name in made)
    lengths = {len(name) for name in made}
    assert lengths == set(range(15, 15 + LENGTHS))
    assert all(len(made[i]) == 20 for i in names.of_length(20)) and len(names.of_length(20)) == 625
    assert names.of_length(14) == [] == names.shorter(15) and len(made[names.shorter(21)[0]]) == 20
    assert made[:50] != [ServiceNames(50, b"example.net", seed=4).name(i) for i in range(50)]


@pytest.mark.parametrize(("size", "key"), [(1, 0), (2, 1), (100, 5), (65534, 9), (2**79 - 3, 11)])
def test_unpermute_undoes_permute(size: int, key: int) -> None:
    for i in range(min(size, 300)):
        assert unpermute(permute(i, size, key), size, key) == i


def test_every_server_has_a_name_and_keeps_it() -> None:
    for version in (4, 6):
        for place in (0, 1, 999, 1000, 65533):
            address = PLAN.host(SERVER, version, place)
            assert PLAN.place(SERVER, address) == place
            assert PLAN.name(address) == PLAN.names.name(place % 1000)
    client = PLAN.host(CLIENT, 4, 5)
    assert PLAN.place(SERVER, client) == -1
    assert PLAN.name(client) == b"host-" + client.hex().encode() + b".test"


def test_the_answer_is_where_the_session_goes_and_the_server_has_the_name_that_was_asked() -> None:
    for number in range(40):
        identities = session(number)
        for room in range(12, 40):
            wire = identities.question(room, 1)
            assert len(wire) <= room and room - len(wire) in {0, 11, *range(15, 40)}
            resolver, _ = identities.settle(identities.host(4, UNICAST, SERVER)[0], 53)
            assert PLAN.place(SERVER, resolver) < 2  # which is no answer's address
            addresses = identities.answers(wire, 4, 1 + room % 3)
            assert len(set(addresses)) == 1 + room % 3
            address, mac = identities.settle(identities.host(4, UNICAST, SERVER)[0], 443)
            assert address == addresses[0] and mac == PLAN.gateway
            assert identities.server_name(address) == text(wire)
            assert all(session(7).server_name(a) == text(wire) for a in addresses)  # in any other session too


def test_a_pair_of_questions_asks_for_one_name() -> None:
    identities = session()
    first = identities.question(20, 1)
    assert identities.question(20, 28) == first
    four, six = identities.answers(first, 4, 1), identities.answers(first, 6, 1)
    assert identities.server_name(four[0]) == identities.server_name(six[0]) == text(first)
    assert len({identities.question(20, 1) for _ in range(30)}) > 5
    assert identities.settle(identities.host(6, UNICAST, SERVER)[0], 443)[0] == six[0]


def test_what_was_not_asked_for_is_answered_alike_and_promises_nothing() -> None:
    wire = wire_name(b"other.example.org")
    assert session(1).answers(wire, 4, 2) == session(2).answers(wire, 4, 2)
    assert session(1).promised == []


def test_unasked_servers_and_memory_stay_bounded() -> None:
    identities = session()
    for i in range(500):
        identities.answers(identities.question(18 + i % 20, 1), 4, 1)
    assert len(identities.promised) <= 8 and len(identities.asked) <= 64 and len(identities.aliases) <= 64


def test_a_list_of_names_is_used_and_longer_questions_ask_below_them() -> None:
    listed = ["www.example.net", "mail.example.net", "cdn7.static.example.org"]
    plan = address_plan(names=listed, seed=2)
    identities = session(3, plan)
    for room in range(19, 60):
        wire = identities.question(room, 1)
        assert len(wire) <= room and room - len(wire) in {0, 11, *range(15, 60)}
        name = text(wire).decode()
        assert any(name == known or name.endswith("." + known) for known in listed), name
        address = identities.answers(wire, 4, 1)[0]
        assert identities.server_name(address).decode() == name
    assert identities.question(5, 1) == b""


def test_arp_looks_for_the_router() -> None:
    identities = session()
    router = identities.settle(identities.host(4, UNICAST, SERVER)[0], ARP_PORT)
    assert router == (PLAN.host(CLIENT, 4, 0), PLAN.gateway)
    assert router == session(8).settle(bytes((198, 19, 0, 1)), ARP_PORT)
    assert router[0] not in {session(n).host(4, UNICAST, CLIENT)[0] for n in range(500)}


def test_a_client_that_comes_back_goes_on_with_other_ports() -> None:
    first, again = session(3), session(253)
    assert first.host(4, UNICAST, CLIENT) == again.host(4, UNICAST, CLIENT)
    assert not {first.port(0) for _ in range(8)} & {again.port(0) for _ in range(8)}


def test_a_long_answer_holds_addresses_of_its_name_only() -> None:
    identities = session()
    wire = identities.question(20, 1)
    for version in (4, 6):
        addresses = identities.answers(wire, version, 80)
        assert len(addresses) == 80 and len(set(addresses)) >= 65
        assert {identities.server_name(address) for address in addresses} == {text(wire)}


def test_a_name_is_found_again_when_it_was_asked_for_long_ago() -> None:
    identities = session()
    wires = [identities.question(18 + i % 20, 1) for i in range(300)]
    for wire in wires:
        assert PLAN.name(identities.answers(wire, 4, 1)[0]) == text(wire)
    assert PLAN.names.find(b"x.y." + PLAN.names.name(77)) == 77 and PLAN.names.find(b"example.net") == -1
