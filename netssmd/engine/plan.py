"""Who there is to speak: what an operator writes about addresses in, an address plan out.

The model says what hosts do; the plan says who they may be: pools (clients originate flows, servers respond; defaults
are the benchmarking ranges of RFC 2544 / RFC 6815 and RFC 5180), how many clients and services there are, the router,
the VLAN, names. A label may have a plan of its own. `engine/identities.py` deals its hosts out to sessions.

Every address of a pool has a place in a permutation keyed by the seed::

    clients   | 0 the router (IPv4) | 1 .. hosts: those that come back  | strangers ...                 |
    servers   | 0 .. services - 1: one for each service                 | service p mod services again  |

The server at place p is called what service p mod `services` is called (engine/names.py), so a name keeps its addresses
and an address its name, in all sessions and for ever.

An access network: a client has a MAC of its own, locally administered (IEEE 802, bit 1 of the first byte): the prefix,
then the last bytes of the IPv4 address, or a hash of the IPv6 one. What comes from beyond the router has the router's
MAC.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Final

from netssmd.engine.names import MOST, ServiceNames
from netssmd.engine.sampling import derive, mix, permute, unpermute
from netssmd.errors import ConfigError
from netssmd.packet.mark import OUI

CLIENT, SERVER = 0, 1
MOST_ANSWERS: Final = 256  # remembered

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Pool:
    """The usable host addresses of some networks of one IP version, in one row: address(0) .. address(size - 1)."""

    version: int
    networks: tuple[Network, ...]
    firsts: tuple[int, ...]  # lowest usable address of each network
    sizes: tuple[int, ...]  # usable addresses of each network
    size: int

    @classmethod
    def of(cls, networks: Sequence[Network]) -> "Pool":
        """Network and broadcast address are left out of IPv4 networks, the subnet-router anycast address out of IPv6
        ones."""
        firsts, sizes = [], []
        for network in networks:
            lone = network.max_prefixlen - network.prefixlen <= 1
            spare = 0 if lone else 2 if network.version == 4 else 1
            firsts.append(int(network.network_address) + (0 if lone else 1))
            sizes.append(network.num_addresses - spare)
        return cls(networks[0].version, tuple(networks), tuple(firsts), tuple(sizes), sum(sizes))

    def address(self, index: int) -> bytes:
        """Packed address of host `index`."""
        for first, size in zip(self.firsts, self.sizes, strict=True):
            if index < size:
                return (first + index).to_bytes(4 if self.version == 4 else 16, "big")
            index -= size
        raise IndexError("host index beyond the pool")

    def index(self, address: bytes) -> int:
        """Where an address is in the row; -1 if it is not."""
        number, before = int.from_bytes(address, "big"), 0
        for first, size in zip(self.firsts, self.sizes, strict=True):
            if first <= number < first + size:
                return before + number - first
            before += size
        return -1


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """Who there is. Build it with `address_plan`.

    pools: by (role, IP version). gateway: the router's MAC; empty: none, servers have MACs of their own. vlan: tag of
    every frame, 0 = none. hosts: clients that come back, 0 = as many as the pool holds. names: of the services.
    mark: of packet/mark.py, in each frame. labels: plans of labels that have one of their own, by pattern; the first
    that fits counts.
    """

    pools: dict[tuple[int, int], Pool]
    mac_prefix: bytes
    seed: int
    gateway: bytes
    vlan: int
    hosts: int
    names: ServiceNames
    mark: str = "none"
    labels: tuple[tuple[str, "AddressPlan"], ...] = ()
    _answers: dict[tuple[int, int, int], list[bytes]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    def for_label(self, label: str) -> "AddressPlan":
        """The plan for sessions of a label."""
        for pattern, plan in self.labels:
            if fnmatchcase(label, pattern):
                return plan
        return self

    def networks(self, role: int) -> list[Network]:
        """Where the hosts of a role live, whatever their label."""
        found: dict[Network, None] = {}
        for plan in (self, *(plan for _, plan in self.labels)):
            for (of, _), pool in plan.pools.items():
                if of == role:
                    found.update(dict.fromkeys(pool.networks))
        return list(found)

    def mac(self, address: bytes, role: int = CLIENT) -> bytes:
        """The MAC of a unicast host: prefix, then as much of the address (IPv6: of its hash) as fits in six bytes; of
        a server, the router's."""
        if role == SERVER and self.gateway:
            return self.gateway
        room = 6 - len(self.mac_prefix)
        if len(address) == 4 and room <= 4:
            return self.mac_prefix + address[4 - room :]
        return self.mac_prefix + derive(self.seed, "mac", address.hex()).to_bytes(8, "big")[:room]

    def host(self, role: int, version: int, place: int) -> bytes:
        """Packed address of the host at a place; places count on and on, round the pool."""
        pool = self.pools[role, version]
        return pool.address(permute(place % pool.size, pool.size, self._key(role, version)))

    def addresses(self, service: int, version: int, count: int) -> list[bytes]:
        """`count` addresses of a service, over and over those that it has. Who floods a resolver asks for the same ones
        a thousand times."""
        found = self._answers.get((service, version, count))
        if found is None:
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            services = self.names.count
            turns = max(1, self.pools[SERVER, version].size // services)
            found = [self.host(SERVER, version, service + i % turns * services) for i in range(count)]
            self._answers[service, version, count] = found
        return found

    def place(self, role: int, address: bytes) -> int:
        """The place of an address; -1 if it is not in the pool."""
        version = 4 if len(address) == 4 else 6
        pool = self.pools[role, version]
        index = pool.index(address)
        return unpermute(index, pool.size, self._key(role, version)) if index >= 0 else -1

    def _key(self, role: int, version: int) -> int:
        return mix(self.seed * 8 + role * 2 + (version == 6))

    def name(self, address: bytes) -> bytes:
        """What a server is called; of another host, a name that is made of its address."""
        place = self.place(SERVER, address)
        if place >= 0:
            return self.names.name(place % self.names.count)
        return b"host-" + address.hex().encode() + b"." + self.names.domain


# What an operator writes: keys of [addresses], and of [addresses.labels."pattern"] those that differ there.
DEFAULTS: Final[dict[str, object]] = {
    "clients": ("198.18.0.0/16", "2001:2::/49"),
    "servers": ("198.19.0.0/16", "2001:2:0:8000::/49"),
    "hosts": 250,
    "services": 1000,
    "mac_prefix": "02:4e",
    "gateway": "auto",
    "vlan": 0,
}
DOMAIN: Final = "test"  # RFC 6761: never a name of the real world


def address_plan(
    clients: Sequence[str] = ("198.18.0.0/16", "2001:2::/49"),
    servers: Sequence[str] = ("198.19.0.0/16", "2001:2:0:8000::/49"),
    mac_prefix: str = "02:4e",
    seed: int = 0,
    where: str = "addresses",
    *,
    hosts: int = 250,
    services: int = 1000,
    gateway: str = "auto",
    vlan: int = 0,
    domain: str = DOMAIN,
    names: Sequence[str] = (),
    mark: str = "none",
    labels: Mapping[str, Mapping[str, object]] | None = None,
) -> AddressPlan:
    """Check what an operator wrote and build the plan. Raises ConfigError naming `where`, the key, what was found and
    the remedy.

    hosts: clients that come back, 0 = all of the pool. services: servers that have names. gateway: a MAC, "auto" or
    "none". domain: of made-up names. names: instead of those. mark: "none", "reserved-bit", or "oui",
    which comes before `mac_prefix` and `gateway`. labels: by pattern, the keys of `DEFAULTS` that differ.
    """
    written = {
        "clients": clients, "servers": servers, "mac_prefix": mac_prefix, "hosts": hosts, "services": services,
        "gateway": gateway, "vlan": vlan,
    }  # fmt: skip
    listed = _listed(where, names)
    if mark == "oui":
        written["mac_prefix"] = OUI.hex()
        written["gateway"] = "none" if gateway == "none" else "auto"
        labels = {
            pattern: {key: value for key, value in own.items() if key not in ("mac_prefix", "gateway")}
            for pattern, own in (labels or {}).items()
        }
    if not _DOMAIN.fullmatch(domain) or len(domain) > 100:
        raise ConfigError(f"{where}: domain {domain!r} is not one; write one such as test or lab.example.net")
    whole = _one_plan(where, written, seed, domain, listed)
    plans = [
        (pattern, f'{where}: labels."{pattern}"', _one_plan(f'{where}: labels."{pattern}"', {**written, **own}, seed,
                                                            domain, listed))
        for pattern, own in (labels or {}).items()
    ]  # fmt: skip
    for i, (_, at, plan) in enumerate(plans):
        for other_at, other in ((where, whole), *((at, plan) for _, at, plan in plans[:i])):
            _apart(at, plan, other_at, other)
    return replace(whole, mark=mark, labels=tuple((pattern, replace(plan, mark=mark)) for pattern, _, plan in plans))


def _one_plan(where: str, written: Mapping[str, object], seed: int, domain: str, listed: list[bytes]) -> AddressPlan:
    """The plan of one table, without labels."""
    roles = ((CLIENT, "clients"), (SERVER, "servers"))
    parsed = [(role, key, _network(where, key, text)) for role, key in roles for text in _texts(written[key])]
    for i, (_, key, network) in enumerate(parsed):
        for _, other_key, other in parsed[i + 1 :]:
            if network.version == other.version and network.overlaps(other):
                raise ConfigError(f"{where}: {key} {network} overlaps {other_key} {other}; give each its own range")
    pools: dict[tuple[int, int], Pool] = {}
    for role, key in roles:
        for version in (4, 6):
            networks = [n for r, _, n in parsed if r == role and n.version == version]
            if not networks:
                hint = "198.18.0.0/16" if version == 4 else "2001:2::/49"
                raise ConfigError(f"{where}: {key} holds no IPv{version} range; add one, such as {hint}")
            pools[role, version] = Pool.of(networks)
    prefix = _mac_prefix(where, str(written["mac_prefix"]))
    gateway = _gateway(where, str(written["gateway"]), prefix)
    hosts, services, vlan = (_whole(written[key]) for key in ("hosts", "services", "vlan"))
    services = len(listed) or services
    for role, key, wanted in ((CLIENT, "hosts", hosts), (SERVER, "services", services)):
        room = min(pools[role, 4].size - (role == CLIENT and bool(gateway)), pools[role, 6].size)
        if wanted > room:  # the pools may be smaller than the default wants, not than what was asked for
            if wanted != DEFAULTS[key]:
                raise ConfigError(
                    f"{where}: {key} is {wanted}, but {roles[role][1]} has addresses for {room} of one IP version; "
                    f"write up to {room}, or a larger range"
                )
            hosts, services = (max(room, 1), services) if role == CLIENT else (hosts, room)
    if not 1 <= services <= MOST:
        raise ConfigError(f"{where}: services is {services}; write 1 to {MOST}")
    if hosts < 0:
        raise ConfigError(f"{where}: hosts is {hosts}; write 0 for all of the range, or how many clients there are")
    if not 0 <= vlan <= 4094:
        raise ConfigError(f"{where}: vlan is {vlan}; write a tag of 1 to 4094, or 0 for none")
    names = ServiceNames(services, domain.encode(), listed, seed)
    return AddressPlan(pools, prefix, seed, gateway, vlan, hosts, names)


_DOMAIN = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")


def _texts(value: object) -> Sequence[str]:
    assert isinstance(value, list | tuple)
    return value


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value


def _listed(where: str, names: Sequence[str]) -> list[bytes]:
    """An operator's names, checked."""
    for name in names:
        if not _DOMAIN.fullmatch(name) or len(name) > 200:
            raise ConfigError(f"{where}: names: {name!r} is no host name; write names such as www.example.net")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ConfigError(f"{where}: names: {twice} stands there twice; a name has one service")
    return [name.encode() for name in names]


def _apart(where: str, plan: AddressPlan, other_where: str, other: AddressPlan) -> None:
    """Two plans may share a range, but a host has one place and one role: ranges that overlap are the same ones."""
    for (role, version), pool in plan.pools.items():
        for (other_role, other_version), other_pool in other.pools.items():
            if version != other_version or (role == other_role and pool.networks == other_pool.networks):
                continue
            for network in pool.networks:
                for taken in other_pool.networks:
                    if network.overlaps(taken):
                        keys = ("clients", "servers")
                        raise ConfigError(
                            f"{where}: {keys[role]} {network} overlaps {keys[other_role]} {taken} of {other_where}; "
                            "give each its own range, or both the same list"
                        )


def _network(where: str, key: str, text: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        try:
            remedy = f"did you mean {ipaddress.ip_network(text, strict=False)}?"
        except ValueError:
            remedy = "write a network such as 198.18.0.0/16 or 2001:2::/49"
        raise ConfigError(f"{where}: {key}: {error}; {remedy}") from None
    if network.is_multicast or network.is_loopback or network.is_link_local or network.is_unspecified:
        raise ConfigError(f"{where}: {key}: {network} is not a range of unicast hosts; write one such as 198.18.0.0/16")
    return network


def _mac_prefix(where: str, text: str) -> bytes:
    try:
        prefix = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        prefix = b""
    if not 1 <= len(prefix) <= 4:
        raise ConfigError(
            f"{where}: mac_prefix {text!r} is not one to four bytes in hexadecimal; write one such as 02:4e"
        )
    if prefix[0] & 3 != 2:
        right = f"{prefix[0] & 0xFC | 2:02x}" + text[2:]
        raise ConfigError(f"{where}: mac_prefix {text!r} is not locally administered unicast; did you mean {right}?")
    return prefix


def _gateway(where: str, text: str, prefix: bytes) -> bytes:
    """The router's MAC; empty for "none"."""
    if text == "none":
        return b""
    if text == "auto":
        return prefix + bytes(5 - len(prefix)) + b"\1"
    try:
        mac = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        right = 'write one such as 02:4e:00:00:00:01, "auto" or "none"'
        raise ConfigError(f"{where}: gateway {text!r} is no unicast MAC; {right}")
    return mac
