"""A running session copied: the same past, another future, other hosts.

    session --snapshot.copy--> values --identities renamed--> another session

The copy goes on from the same state of codec, checker and conversations (and, beside it, of the model), with token,
identity and payload streams of its own. Two sessions on one wire must not share five-tuples, so hosts of the copy are
others of the same plan: a client is the next that the plan deals to the copy's number, a server another address of the
same service, so that its name stays; where a service has one address only, it keeps that. The router and groups stay.
Ports and sequence numbers are kept: flows go on mid-stream, between other ends.

Addresses and MACs stand in a session as `bytes`, wherever they do (hosts, keys of flows, headers to come back to), so
the values are renamed as they are made into objects again, and nothing that knows an address is named here. What was
written into a payload stays as it was.
"""

from __future__ import annotations

from netssmd.codec.decoder import Decoder
from netssmd.engine import snapshot
from netssmd.engine.identities import ROUTER, FreshIdentities
from netssmd.engine.plan import CLIENT, SERVER, AddressPlan
from netssmd.engine.sampling import Stream, derive
from netssmd.engine.session import Session, SessionInfo
from netssmd.errors import UsageError
from netssmd.packet.compliance import Totals

TRIES = 16  # of the plan for a client that the session does not have


def fork(session: Session, info: SessionInfo, named: snapshot.Named) -> Session:
    """The session again, as `info` (whose label and conditions are the session's). `named`: as for snapshots; its plan
    gives the hosts. Raises UsageError where that cannot be, SnapshotError for what cannot be copied."""
    if type(session.decoder) is not Decoder or session.identities is None:
        raise UsageError("only sessions of the context codec can be forked; this one's tokens spell its addresses out")
    plan = session.identities.plan
    fresh = FreshIdentities(plan, info.number, Stream(derive(info.seed, "identities")))
    renames = _Renames(_others(list(session.decoder.context.hosts), plan, fresh), plan)
    copy = snapshot.restore_session(snapshot.copy(session, named), named, renames=renames)
    copy.info = info
    copy.stream = Stream(derive(info.seed, "tokens"))
    identities = copy.identities
    assert identities is not None
    identities.session, identities.stream, identities.dealt = info.number, fresh.stream, fresh.dealt
    identities.ports_dealt, identities._port_first, identities.reused = 0, -1, fresh.reused
    if copy.payload is not None:
        copy.payload.draw_from(Stream(derive(info.seed, "payload")))
    if copy.planter is not None:
        copy.planter.stream = Stream(derive(info.seed, "anomalies"))
        copy.planter.planted = {}
    _count_anew(copy)
    return copy


def _count_anew(copy: Session) -> None:
    """What the original has counted is told once, by the original. Packets and tokens go on, for the limits' sake."""
    copy.deficit_ns = copy.throttled_ns = copy.late_dropped = 0
    if isinstance(copy.decoder, Decoder):
        copy.decoder.clamped = 0
    if copy.checker is not None:
        copy.checker.totals = Totals()
    if copy.guide is not None:
        copy.guide.interventions = [0] * len(copy.guide.interventions)
        copy.guide.removed = [0.0] * len(copy.guide.removed)


def _others(addresses: list[bytes], plan: AddressPlan, fresh: FreshIdentities) -> dict[bytes, bytes]:
    """Who each unicast host becomes. Raises UsageError where the plan has nobody else."""
    taken = set(addresses)
    renamed: dict[bytes, bytes] = {}
    for address in addresses:
        if len(address) not in (4, 16):
            continue
        version = 4 if len(address) == 4 else 6
        place = plan.place(CLIENT, address)
        if plan.place(SERVER, address) >= 0:
            other = _same_service(address, plan, taken)
        elif place < 0 or (place == ROUTER and version == 4 and plan.gateway):
            continue  # a group, a broadcast; the router
        else:
            other = next((a for a in (fresh.host(version, 0, CLIENT)[0] for _ in range(TRIES)) if a not in taken), b"")
            if not other:
                raise UsageError("addresses.clients has no other clients for a copy; give it a larger range")
        taken.add(other)
        renamed[address] = other
    return renamed


def _same_service(address: bytes, plan: AddressPlan, taken: set[bytes]) -> bytes:
    """Another address of the server's service that nobody in the session has; the same one if there is none."""
    version = 4 if len(address) == 4 else 6
    size, services = plan.pools[SERVER, version].size, plan.names.count
    place = plan.place(SERVER, address)
    turns = size // services  # addresses that a service has
    for turn in range(place // services + 1, place // services + min(turns, TRIES)):
        other = plan.host(SERVER, version, place % services + turn % turns * services)
        if other not in taken:
            return other
    return address


class _Renames:
    """Bytes in, bytes out: an address or a MAC that has another now, a link header that begins with such MACs."""

    def __init__(self, addresses: dict[bytes, bytes], plan: AddressPlan) -> None:
        self.names = dict(addresses)
        for old, new in addresses.items():
            role = CLIENT if plan.place(SERVER, old) < 0 else SERVER
            self.names[plan.mac(old, role)] = plan.mac(new, role)

    def __call__(self, value: bytes) -> bytes:
        other = self.names.get(value)
        if other is not None:
            return other
        if len(value) in (14, 18):  # destination, source, perhaps a VLAN tag, type
            to, by = value[:6], value[6:12]
            if to in self.names or by in self.names:
                return self.names.get(to, to) + self.names.get(by, by) + value[12:]
        return value
