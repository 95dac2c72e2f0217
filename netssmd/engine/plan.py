"""Who the hosts of a synthetic session are: in an address plan, a seed and a session number, out fresh identities.

The model says what hosts do; this file says who they are. `AddressPlan` holds the pools that an operator gives (clients
originate flows, servers respond; defaults are the benchmarking ranges of RFC 2544 / RFC 6815 and RFC 5180),
`FreshIdentities` deals them out to one session through the codec's `IdentitySource` protocol. Everything is a function
of (seed, session number, how many were dealt before):

    client 0 of session n   a permutation of the pool keyed by the seed, at n: each session has a client of its own
    any other host          a permutation keyed by the session, at 0, 1, 2 ...: within a session no address comes twice
    pool used up            addresses come again, and `reused` counts it

so no set of used addresses is kept, however many hosts a session invents. MACs are locally administered (IEEE 802, bit
1 of the first byte): the prefix, then the last bytes of the IPv4 address, or a hash of the IPv6 one. Multicast MACs
follow RFC 1112 and RFC 2464.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from netssmd.engine.sampling import Stream, derive, mix, permute
from netssmd.errors import ConfigError

UNICAST, MULTICAST, BROADCAST = 0, 1, 2
CLIENT, SERVER = 0, 1
EPHEMERAL, REGISTERED, ANY, SYSTEM = 0, 1, 2, 3

# Groups that hosts of an access network really speak to: all hosts, mDNS, LLMNR, SSDP, IGMPv3 / all routers, MLDv2.
GROUPS: dict[int, tuple[bytes, ...]] = {
    4: tuple(
        ipaddress.IPv4Address(a).packed
        for a in ("224.0.0.251", "239.255.255.250", "224.0.0.252", "224.0.0.22", "224.0.0.1")
    ),
    6: tuple(
        ipaddress.IPv6Address(a).packed for a in ("ff02::fb", "ff02::c", "ff02::1:3", "ff02::16", "ff02::1", "ff02::2")
    ),
}
EPHEMERAL_FIRST, EPHEMERAL_COUNT = 32768, 28232  # Linux: net.ipv4.ip_local_port_range = 32768 60999
PORTS = {REGISTERED: (1024, 31744), ANY: (1, 65535), SYSTEM: (1, 1023)}

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


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """Pools by (role, IP version), the MAC prefix, and the seed that shuffles them. Build it with `address_plan`."""

    pools: dict[tuple[int, int], Pool]
    mac_prefix: bytes
    seed: int

    def networks(self, role: int) -> list[Network]:
        """Where the hosts of a role live."""
        return [network for (of, _), pool in self.pools.items() if of == role for network in pool.networks]

    def mac(self, address: bytes) -> bytes:
        """The MAC of a unicast host: prefix, then as much of the address (IPv6: of its hash) as fits in six bytes."""
        room = 6 - len(self.mac_prefix)
        if len(address) == 4 and room <= 4:
            return self.mac_prefix + address[4 - room :]
        return self.mac_prefix + derive(self.seed, "mac", address.hex()).to_bytes(8, "big")[:room]


def address_plan(
    clients: Sequence[str] = ("198.18.0.0/16", "2001:2::/49"),
    servers: Sequence[str] = ("198.19.0.0/16", "2001:2:0:8000::/49"),
    mac_prefix: str = "02:4e",
    seed: int = 0,
    where: str = "addresses",
) -> AddressPlan:
    """Check what an operator wrote and build the plan. Raises ConfigError naming `where`, the key, what was found and
    the remedy."""
    named = [(CLIENT, "clients", text) for text in clients] + [(SERVER, "servers", text) for text in servers]
    parsed = [(role, key, _network(where, key, text)) for role, key, text in named]
    for i, (_, key, network) in enumerate(parsed):
        for _, other_key, other in parsed[i + 1 :]:
            if network.version == other.version and network.overlaps(other):
                raise ConfigError(f"{where}: {key} {network} overlaps {other_key} {other}; give each its own range")
    pools: dict[tuple[int, int], Pool] = {}
    for role, key in ((CLIENT, "clients"), (SERVER, "servers")):
        for version in (4, 6):
            networks = [n for r, _, n in parsed if r == role and n.version == version]
            if not networks:
                hint = "198.18.0.0/16" if version == 4 else "2001:2::/49"
                raise ConfigError(f"{where}: {key} holds no IPv{version} range; add one, such as {hint}")
            pools[role, version] = Pool.of(networks)
    return AddressPlan(pools, _mac_prefix(where, mac_prefix), seed)


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


def group_mac(address: bytes) -> bytes:
    """The Ethernet address of an IP multicast group (RFC 1112 section 6.4, RFC 2464 section 7)."""
    if len(address) == 4:
        return bytes((0x01, 0x00, 0x5E, address[1] & 0x7F, address[2], address[3]))
    return b"\x33\x33" + address[-4:]


@dataclass(slots=True)
class FreshIdentities:
    """The codec's IdentitySource for one synthetic session: every answer from the plan or from the session's own
    stream.

    plan: the pools; session: its number (picks client 0); stream: its identity stream. `reused` counts addresses dealt
        twice.
    """

    plan: AddressPlan
    session: int
    stream: Stream
    reused: int = 0
    dealt: dict[tuple[int, int], int] = field(default_factory=dict)  # (role, version) -> hosts dealt so far
    ports_dealt: int = 0
    _port_first: int = -1
    _port_stride: int = 1

    def fresh(self) -> bool:
        return True

    def within(self, n: int) -> int:
        """Uniform in [0, n): the place inside a log-spaced bin."""
        return self.stream.below(n)

    def residual(self) -> int:
        """What a real field differs by from its prediction: nothing, here."""
        return 0

    def word(self, bits: int) -> int:
        """ISN, origin of IP-id or timestamps, echo id, flow label."""
        return self.stream.bits(bits)

    def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
        """(packed address, MAC) of the next host. A version that is neither 4 nor 6 has a MAC only."""
        if version not in (4, 6):
            return b"", self._bare_mac(cast)
        if cast != 0:
            return self._group(version, cast)
        address = self._unicast(self.plan.pools[role, version], role)
        return address, self.plan.mac(address)

    def _group(self, version: int, cast: int) -> tuple[bytes, bytes]:
        """A multicast group or broadcast address that the session does not have yet: the well-known ones first."""
        count = self.dealt.get((-cast, version), 0)
        self.dealt[-cast, version] = count + 1
        if cast == BROADCAST and version == 4:
            network = self.plan.pools[CLIENT, 4].address(0)
            return network[:2] + bytes((256 - count & 255, 255)) if count else b"\xff" * 4, b"\xff" * 6
        known = GROUPS[version]
        if count < len(known):
            first = derive(self.stream.key, "groups") % len(known)
            group = known[(first + count) % len(known)]
        elif version == 4:
            group = b"\xef\xff" + count.to_bytes(2, "big")  # 239.255/16, RFC 2365
        else:
            group = b"\xff\x15" + bytes(10) + count.to_bytes(4, "big")  # transient, site-local
        return group, group_mac(group)

    def _unicast(self, pool: Pool, role: int) -> bytes:
        count = self.dealt.get((role, pool.version), 0)
        self.dealt[role, pool.version] = count + 1
        first = permute(self.session % pool.size, pool.size, derive(self.plan.seed, "clients", pool.version))
        if role == CLIENT and count == 0:
            self.reused += self.session >= pool.size
            return pool.address(first)
        self.reused += count >= pool.size
        key = self.stream.key ^ mix(role * 8 + pool.version)
        index = permute(count % pool.size, pool.size, key)
        if role == CLIENT and index == first:  # client 0 again: take the place it left free
            index = permute(0, pool.size, key)
        return pool.address(index)

    def _bare_mac(self, cast: int) -> bytes:
        if cast == BROADCAST:
            return b"\xff" * 6
        if cast == MULTICAST:  # the bridge group address of IEEE 802.1D (STP); LLDP is one of its neighbours
            return b"\x01\x80\xc2\x00\x00\x00"
        room = 6 - len(self.plan.mac_prefix)
        return self.plan.mac_prefix + self.stream.bits(8 * room).to_bytes(room, "big")

    def port(self, port_class: int) -> int:
        """A port of the class; ephemeral ones do not come twice until all 28,232 have been dealt."""
        if port_class != EPHEMERAL:
            first, count = PORTS[port_class]
            return first + self.stream.below(count)
        if self._port_first < 0:
            self._port_first = self.stream.below(EPHEMERAL_COUNT)
            # Linux counts up by two per destination from a hashed origin: seen from one host that is either steps of
            # two or noise.

            self._port_stride = 1 if self.stream.below(2) else 1 + 2 * self.stream.below(1764)
        index = (self._port_first + self.ports_dealt * self._port_stride) % EPHEMERAL_COUNT
        self.ports_dealt += 1
        half = EPHEMERAL_COUNT // 2
        return EPHEMERAL_FIRST + (2 * index if index < half else 2 * (index - half) + 1)

    def link(self, default: bytes) -> bytes:
        """The link header as rendered by default: the plan puts no VLAN tag in."""
        return default

    def blob(self, n: int) -> bytes:
        """Opaque bytes that the codec does not model."""
        return bytes(n)
