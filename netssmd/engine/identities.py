"""Who the hosts of one synthetic session are: a plan, a session number and a stream in, identities out when asked for.

`FreshIdentities` answers the codec (its `IdentitySource` protocol) and the payload writer (its `Names` protocol). Who
is dealt is a function of (seed, session number, how many were dealt before), so no set of used addresses is kept,
however many hosts a session invents:

    client 0 of session n   the client at place n mod `hosts`: the same clients come back, and live sessions have others
    other clients           strangers: places behind those of the clients, a permutation keyed by the session
    servers                 services: places below `services`, keyed by the session; then the places behind them
    responder at port 53    the client's resolver
    pool used up            addresses come again, and `reused` counts it

A name that a session asked for, and got an address for, is where its next new server is: DNS before use, names that
agree. Multicast MACs follow RFC 1112 and RFC 2464.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Final

from netssmd.engine.names import text_name, wire_name
from netssmd.engine.plan import CLIENT, SERVER, AddressPlan
from netssmd.engine.sampling import Stream, derive, mix, permute

UNICAST, MULTICAST, BROADCAST = 0, 1, 2
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
ROUTER: Final = 0  # place of the router among the IPv4 clients
RESOLVERS: Final = 2  # services 0 and 1 answer DNS questions
ARP_PORT: Final = -1  # `settle`: nobody listens, a neighbour is looked for
MOST_PROMISED: Final = 8
MOST_ASKED: Final = 64


def group_mac(address: bytes) -> bytes:
    """The Ethernet address of an IP multicast group (RFC 1112 section 6.4, RFC 2464 section 7)."""
    if len(address) == 4:
        return bytes((0x01, 0x00, 0x5E, address[1] & 0x7F, address[2], address[3]))
    return b"\x33\x33" + address[-4:]


@dataclass(slots=True)
class FreshIdentities:
    """The codec's IdentitySource for one synthetic session, and the payload writer's `Names`: every answer from the
    plan or from the session's own stream.

    plan: the pools; session: its number (picks client 0); stream: its identity stream. `reused` counts addresses dealt
        twice.
    """

    plan: AddressPlan
    session: int
    stream: Stream
    reused: int = 0
    dealt: dict[tuple[int, int], int] = field(default_factory=dict)  # (role, version) -> hosts dealt so far
    ports_dealt: int = 0
    asked: dict[bytes, int] = field(default_factory=dict)  # name as DNS writes it -> service, the last ones
    promised: list[bytes] = field(default_factory=list)  # addresses that names were resolved to, for hosts to come
    aliases: dict[int, bytes] = field(default_factory=dict)  # service -> the longer name that it was asked for by
    questions: int = 0
    _last_question: bytes = b""
    _last_qtype: int = 0
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

    # --- hosts ----------------------------------------------------------------------------------------------------

    def host(self, version: int, cast: int, role: int) -> tuple[bytes, bytes]:
        """(packed address, MAC) of the next host. A version that is neither 4 nor 6 has a MAC only."""
        if version not in (4, 6):
            return b"", self._bare_mac(cast)
        if cast != 0:
            return self._group(version, cast)
        address = self._unicast(version, role)
        return address, self.plan.mac(address, role)

    def settle(self, address: bytes, port: int) -> tuple[bytes, bytes]:
        """(address, MAC) of the responder that was dealt `address`, now that its port is known."""
        version = 4 if len(address) == 4 else 6
        plan = self.plan
        if port == ARP_PORT:
            if plan.gateway:
                return plan.host(CLIENT, 4, ROUTER), plan.gateway
            return address, plan.mac(address, SERVER)
        if port == 53:
            if plan.names.count > 2 * RESOLVERS:
                address = plan.host(SERVER, version, self._client_place(version) % RESOLVERS)
        else:
            for i, known in enumerate(self.promised):
                if len(known) == len(address):
                    address = known
                    del self.promised[i]
                    break
        return address, plan.mac(address, SERVER)

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

    def _client_place(self, version: int) -> int:
        """Place of the session's own client."""
        first, size = self._clients(version)
        return first + self.session % min(self.plan.hosts or size, size)

    def _clients(self, version: int) -> tuple[int, int]:
        """First place and number of the places that clients may have: the router's is not among them."""
        size = self.plan.pools[CLIENT, version].size
        return (ROUTER + 1, size - 1) if version == 4 and size > 1 and self.plan.gateway else (0, size)

    def _unicast(self, version: int, role: int) -> bytes:
        plan = self.plan
        count = self.dealt.get((role, version), 0)
        self.dealt[role, version] = count + 1
        key = self.stream.key ^ mix(role * 8 + version)
        if role == CLIENT:
            first, size = self._clients(version)
            known = min(plan.hosts or size, size)
            own = self.session % known
            if count == 0 or size == 1:
                self.reused += count > 0 or (plan.hosts == 0 and self.session >= size)
                return plan.host(CLIENT, version, first + own)
            self.reused += count >= size
            count = (count - 1) % (size - 1)
            strangers = size - known
            if count < strangers:
                return plan.host(CLIENT, version, first + known + permute(count, strangers, key))
            return plan.host(CLIENT, version, first + (own + 1 + count - strangers) % known)
        size = plan.pools[SERVER, version].size
        resolvers = RESOLVERS if plan.names.count > 2 * RESOLVERS else 0
        services = min(plan.names.count, size) - resolvers
        self.reused += count >= size - resolvers
        count %= size - resolvers
        if count < services:
            return plan.host(SERVER, version, resolvers + permute(count, services, key))
        behind = size - resolvers - services
        return plan.host(SERVER, version, resolvers + services + permute(count - services, behind, key))

    # --- names ----------------------------------------------------------------------------------------------------

    def question(self, room: int, qtype: int) -> bytes:
        """A name to ask for, as DNS writes it: `room` bytes, or as many as leave 11 or 15 and more for an additional
        record; empty if no name is as short as that. AAAA after A, or A after AAAA, asks for the same name."""
        last = self._last_question
        pair = self._last_qtype != qtype and {self._last_qtype, qtype} == {1, 28}
        if not (pair and len(last) > 2 and (len(last) == room or room - len(last) in (11, 15))):
            last = self._choose(room)
            qtype = qtype if last else 0
        else:
            qtype = 0  # the pair is complete
        self._last_question = last
        self._last_qtype = qtype
        return last

    def _choose(self, room: int) -> bytes:
        names = self.plan.names
        found = names.of_length(room - 2)
        if not found and room > 13:
            found = names.of_length(room - 2 - 11)
        if not found and room > 17:
            found = names.shorter(room - 2 - 14)
        alias = 0
        if not found:  # no name of that length: a name below a shorter one
            found = names.shorter(room - 3)
            if not found:
                return b""
            alias = room - 2 - len(names.name(found[0]))
        resolvers = RESOLVERS if names.count > 2 * RESOLVERS else 0
        one, two = self._draw(), self._draw()  # the lower of two: some names are asked for more often
        service = found[min(one % len(found), two % len(found))]
        if service < resolvers:
            service = found[(found.index(service) + 1) % len(found)]
        name = names.name(service)
        self.aliases.pop(service, None)
        if 1 < alias < 64:
            letters = mix(service * 64 + alias).to_bytes(8, "big").hex().encode() * 4
            name = letters[: alias - 1] + b"." + name
            self.aliases[service] = name
            if len(self.aliases) > MOST_ASKED:
                del self.aliases[next(iter(self.aliases))]
        wire = wire_name(name)
        self.asked.pop(wire, None)
        self.asked[wire] = service
        if len(self.asked) > MOST_ASKED:
            del self.asked[next(iter(self.asked))]
        return wire

    def _draw(self) -> int:
        self.questions += 1
        return mix(self.stream.key ^ mix(self.questions))

    def answers(self, name: bytes, version: int, count: int) -> list[bytes]:
        """`count` addresses of a name as DNS writes it. The session's next new server is at the first of them."""
        plan = self.plan
        service = self.asked.get(name, -1)
        if service < 0:  # not asked for here, or too long ago
            service = plan.names.find(text_name(name))
        if service < 0:  # no service's name: any address, the same each time
            service = derive(plan.seed, "answers", name.hex()) % plan.names.count
        addresses = plan.addresses(service, version, count)
        if addresses and name in self.asked and addresses[0] not in self.promised:
            self.promised.append(addresses[0])
            if len(self.promised) > MOST_PROMISED:
                del self.promised[0]
        return addresses

    def server_name(self, address: bytes) -> bytes:
        """What the host with this address is called; the way the session asked for it, if it did."""
        if self.aliases:
            place = self.plan.place(SERVER, address)
            if place >= 0 and place % self.plan.names.count in self.aliases:
                return self.aliases[place % self.plan.names.count]
        return self.plan.name(address)

    # --- the rest -------------------------------------------------------------------------------------------------

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
            # A client that comes back goes on behind the ports that it had, so that a five-tuple does not come twice.
            turn = self.session // (self.plan.hosts or self.plan.pools[CLIENT, 4].size)
            self._port_first = (mix(self.plan.seed ^ self._client_place(4)) + 1009 * turn) % EPHEMERAL_COUNT
            # Linux counts up by two per destination from a hashed origin: seen from one host that is either steps of
            # two or noise.

            self._port_stride = 1 if self.stream.below(2) else 1 + 2 * self.stream.below(1764)
        index = (self._port_first + self.ports_dealt * self._port_stride) % EPHEMERAL_COUNT
        self.ports_dealt += 1
        half = EPHEMERAL_COUNT // 2
        return EPHEMERAL_FIRST + (2 * index if index < half else 2 * (index - half) + 1)

    def link(self, default: bytes) -> bytes:
        """The link header as rendered by default, with the plan's VLAN tag (IEEE 802.1Q, priority 0)."""
        vlan = self.plan.vlan
        return default[:12] + b"\x81\0" + bytes((vlan >> 8, vlan & 255)) + default[12:] if vlan else default

    def blob(self, n: int) -> bytes:
        """Opaque bytes that the codec does not model."""
        return bytes(n)
