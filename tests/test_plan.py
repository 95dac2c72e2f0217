"""Fresh identities: inside the pools, unique where promised, the same for the same seed, and clear errors for plans
that cannot be."""

import ipaddress

import pytest

from netssmd.engine.identities import BROADCAST, EPHEMERAL, MULTICAST, UNICAST, FreshIdentities
from netssmd.engine.plan import CLIENT, MOST_ANSWERS, SERVER, address_plan
from netssmd.engine.sampling import Stream, derive
from netssmd.errors import ConfigError
from netssmd.packet.mark import OUI


def fresh(session: int = 0, **plan: object) -> FreshIdentities:
    # type: ignore[arg-type]
    return FreshIdentities(address_plan(**plan), session, Stream(derive(1, "session", session, "identities")))


def test_hosts_come_from_their_pool_with_local_macs() -> None:
    identities = fresh()
    for version, role, network in (
        (4, CLIENT, "198.18.0.0/16"),
        (4, SERVER, "198.19.0.0/16"),
        (6, CLIENT, "2001:2::/49"),
        (6, SERVER, "2001:2:0:8000::/49"),
    ):
        for _ in range(50):
            address, mac = identities.host(version, UNICAST, role)
            assert ipaddress.ip_address(address) in ipaddress.ip_network(network)
            assert mac[0] & 3 == 2 and len(mac) == 6
    assert identities.reused == 0


def test_same_seed_same_hosts_and_sessions_have_clients_of_their_own() -> None:
    def first_client(n: int) -> bytes:
        return fresh(n).host(4, UNICAST, CLIENT)[0]

    firsts = [first_client(n) for n in range(500)]
    assert firsts == [first_client(n) for n in range(500)]
    assert len(set(firsts[:250])) == 250 and firsts[250:] == firsts[:250]  # the same ones come back

    def of_all(n: int) -> bytes:
        return fresh(n, hosts=0).host(4, UNICAST, CLIENT)[0]

    assert len({of_all(n) for n in range(500)}) == 500


def test_no_address_twice_until_the_pool_is_used_up_then_counted() -> None:
    identities = fresh(clients=["10.0.0.0/28", "2001:2::/49"], hosts=3)  # one more is the router
    dealt = [identities.host(4, UNICAST, CLIENT) for _ in range(13)]
    assert len({a for a, _ in dealt}) == 13 and len({m for _, m in dealt}) == 13 and identities.reused == 0
    assert not {a[3] for a, _ in dealt} & {0, 15}  # network and broadcast address
    identities.host(4, UNICAST, CLIENT)
    assert identities.reused == 1
    for role in (CLIENT, SERVER):
        identities = fresh()
        assert len({identities.host(4, UNICAST, role)[0] for _ in range(5000)}) == 5000 and identities.reused == 0


def test_a_pool_of_several_networks_and_of_a_single_host() -> None:
    identities = fresh(clients=["10.0.0.1/32", "10.9.0.0/30", "2001:2::/49"], servers=["10.1.0.1/32", "2001:2:1::/48"])
    assert len({identities.host(4, UNICAST, CLIENT)[0] for _ in range(2)}) == 2  # the third is the router's
    assert identities.host(4, UNICAST, SERVER)[0] == identities.host(4, UNICAST, SERVER)[0] == bytes((10, 1, 0, 1))
    assert identities.reused == 1


def test_groups_and_broadcast() -> None:
    identities = fresh()
    for version in (4, 6):
        address, mac = identities.host(version, MULTICAST, SERVER)
        assert ipaddress.ip_address(address).is_multicast and mac[0] & 1
    assert identities.host(4, BROADCAST, SERVER) == (b"\xff" * 4, b"\xff" * 6)
    assert identities.host(0, UNICAST, CLIENT)[0] == b""


def test_ephemeral_ports_do_not_repeat() -> None:
    for session in range(6):
        identities = fresh(session)
        ports = [identities.port(EPHEMERAL) for _ in range(28232)]
        assert len(set(ports)) == 28232 and min(ports) == 32768 and max(ports) == 60999


def test_other_ports_stay_in_their_class() -> None:
    identities = fresh()
    for cls, low, high in ((1, 1024, 32767), (2, 1, 65535), (3, 1, 1023)):
        assert all(low <= identities.port(cls) <= high for _ in range(200))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"clients": ["198.18.0.1/16", "2001:2::/49"]}, "did you mean 198.18.0.0/16"),
        ({"clients": ["nonsense"]}, "write a network such as"),
        ({"clients": ["198.19.4.0/24", "2001:2::/49"]}, "overlaps servers 198.19.0.0/16"),
        ({"clients": ["2001:2::/49"]}, "no IPv4 range"),
        ({"clients": ["224.0.0.0/8", "2001:2::/49"]}, "not a range of unicast hosts"),
        ({"mac_prefix": "00:11:22"}, "did you mean 02:11:22"),
        ({"mac_prefix": "zz"}, "one to four bytes"),
        ({"gateway": "01:00:5e:00:00:01"}, "no unicast MAC; write one such as"),
        ({"gateway": "router"}, "no unicast MAC"),
        ({"vlan": 4095}, "write a tag of 1 to 4094, or 0"),
        ({"hosts": -1}, "write 0 for all of the range"),
        ({"clients": ["10.0.0.0/24", "2001:2::/49"], "hosts": 254}, "clients has addresses for 253 of one IP version"),
        ({"servers": ["10.0.0.0/24", "2001:2:9::/64"], "services": 255}, "servers has addresses for 254"),
        ({"services": 0}, "services is 0; write 1 to"),
        ({"domain": "-x"}, "write one such as test"),
        ({"names": ["a.example.net", "b_c"]}, "'b_c' is no host name"),
        ({"names": ["a.example.net", "a.example.net"]}, "a.example.net stands there twice"),
        ({"labels": {"attack-*": {"vlan": -1}}}, 'labels."attack-*": vlan is -1'),
        ({"labels": {"x": {"clients": ["198.18.66.0/24", "2001:2:9::/64"]}}}, "overlaps clients 198.18.0.0/16 of addr"),
        ({"labels": {"x": {"clients": ["198.19.0.0/16", "2001:2:9::/64"]}}}, "overlaps servers 198.19.0.0/16"),
    ],
)
def test_plans_that_cannot_be(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match="addresses: ") as caught:
        address_plan(**arguments)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_small_ranges_take_fewer_hosts_than_the_default_wants() -> None:
    plan = address_plan(clients=["10.0.0.0/29", "2001:2::/49"], servers=["10.1.0.0/29", "2001:2:1::/48"])
    assert plan.hosts == 5 and plan.names.count == 6


def test_a_services_addresses_are_hosts_of_its_own_however_often_they_are_asked_for() -> None:
    plan = address_plan(seed=3, servers=("198.19.0.0/24", "2001:2:0:8000::/49"), services=100)
    for _ in range(2):  # 254 addresses for 100 services: two for each
        expected = [plan.host(SERVER, 4, place) for place in (7, 107, 7, 107, 7)]
        assert plan.addresses(7, 4, 5) == expected and len(set(expected)) == 2
        assert plan.addresses(7, 6, 3) == [plan.host(SERVER, 6, place) for place in (7, 107, 207)]
        for service in range(100):
            for count in range(1, 5):
                assert plan.addresses(service, 4, count)[0] == plan.host(SERVER, 4, service)
        assert len(plan._answers) <= MOST_ANSWERS


def test_labels_have_plans_of_their_own_and_share_the_rest() -> None:
    plan = address_plan(
        labels={"attack-*": {"clients": ["10.66.0.0/24", "2001:2:9::/64"], "hosts": 2, "vlan": 66}, "web": {"vlan": 7}}
    )
    assert plan.for_label("chat") is plan and plan.for_label("web").vlan == 7
    attack = plan.for_label("attack-synscan")
    assert (attack.vlan, attack.hosts) == (66, 2) and attack.pools[SERVER, 4] == plan.pools[SERVER, 4]
    assert attack.host(SERVER, 4, 5) == plan.host(SERVER, 4, 5)
    attackers = {FreshIdentities(attack, n, Stream(n)).host(4, UNICAST, CLIENT)[0] for n in range(40)}
    assert len(attackers) == 2 and {a[:3] for a in attackers} == {bytes((10, 66, 0))}
    assert {str(n) for n in plan.networks(CLIENT)} == {"198.18.0.0/16", "2001:2::/49", "10.66.0.0/24", "2001:2:9::/64"}
    assert len(plan.networks(SERVER)) == 2


def test_beyond_the_router_there_is_one_mac() -> None:
    identities = fresh()
    clients = {identities.host(4, UNICAST, CLIENT)[1] for _ in range(20)}
    servers = {identities.host(v, UNICAST, SERVER)[1] for _ in range(20) for v in (4, 6)}
    assert len(clients) == 20 and servers == {bytes.fromhex("024e00000001")}
    identities = fresh(gateway="none")
    assert len({identities.host(4, UNICAST, SERVER)[1] for _ in range(20)}) == 20
    assert fresh(gateway="02:00:00:00:00:09").host(4, UNICAST, SERVER)[1][-1] == 9


def test_a_vlan_tag_stands_before_the_ethertype() -> None:
    link = bytes(12) + b"\x08\0"
    assert fresh().link(link) == link
    assert fresh(vlan=300).link(link) == bytes(12) + bytes.fromhex("8100012c0800")


def test_the_mark_of_macs_comes_before_what_else_is_said_of_them() -> None:
    plan = address_plan(mark="oui", gateway="02:00:00:00:00:09", labels={"x": {"mac_prefix": "02:11", "vlan": 3}})
    for own in (plan, plan.for_label("x")):
        assert own.gateway[:3] == own.mac(bytes(4))[:3] == own.mac(bytes(16))[:3] == OUI and own.mark == "oui"
    assert address_plan(mark="oui", gateway="none").gateway == b""
