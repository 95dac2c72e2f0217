"""Fresh identities: inside the pools, unique where promised, the same for the same seed, and clear errors for plans
that cannot be."""

import ipaddress

import pytest

from netssmd.engine.plan import BROADCAST, CLIENT, EPHEMERAL, MULTICAST, SERVER, UNICAST, FreshIdentities, address_plan
from netssmd.engine.sampling import Stream, derive
from netssmd.errors import ConfigError


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
    assert len(set(firsts)) == 500


def test_no_address_twice_until_the_pool_is_used_up_then_counted() -> None:
    identities = fresh(clients=["10.0.0.0/28", "2001:2::/49"])
    dealt = [identities.host(4, UNICAST, CLIENT) for _ in range(14)]
    assert len({a for a, _ in dealt}) == 14 and len({m for _, m in dealt}) == 14 and identities.reused == 0
    assert not {a[3] for a, _ in dealt} & {0, 15}  # network and broadcast address
    identities.host(4, UNICAST, CLIENT)
    assert identities.reused == 1


def test_a_pool_of_several_networks_and_of_a_single_host() -> None:
    identities = fresh(clients=["10.0.0.1/32", "10.9.0.0/30", "2001:2::/49"], servers=["10.1.0.1/32", "2001:2:1::/48"])
    assert len({identities.host(4, UNICAST, CLIENT)[0] for _ in range(3)}) == 3
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
    ],
)
def test_plans_that_cannot_be(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match="addresses: ") as caught:
        address_plan(**arguments)  # type: ignore[arg-type]
    assert text in str(caught.value)
