"""A session is copied while it runs: the original goes on as if nothing had been, the copy goes on among other hosts.
By the unix socket and by MQTT; the same daemon saves its sessions when it is asked to."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, wait_for
from mosquitto import Mosquitto
from test_mqtt import section

from netssmd.codec.vocab import PACKETS
from netssmd.daemon import fleet
from netssmd.daemon.control_client import Asker
from netssmd.engine import snapshot
from netssmd.engine.fork import fork
from netssmd.engine.opening import OpenModel, open_model
from netssmd.engine.plan import AddressPlan, address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Limits, OutPacket, Session, SessionInfo
from netssmd.errors import UsageError
from netssmd.packet.compliance import FINDINGS, Checker
from netssmd.packet.pcap import read_capture
from netssmd.packet.wire import SYN, parse

SECOND = 10**9
COPY = 1 << 40


@pytest.fixture(scope="module")
def model() -> OpenModel:
    return open_model()


def run(scheduler: Scheduler, until: Callable[[list[OutPacket]], bool]) -> list[OutPacket]:
    packets: list[OutPacket] = []
    while scheduler.live and not until(packets):
        step = scheduler.step()
        packets += step[0] if step else []
    return packets


def begun(model: OpenModel, plan: AddressPlan, label: str) -> tuple[Scheduler, Session]:
    scheduler = Scheduler(model.backend(4))
    session = model.session(SessionInfo(3, label, {PACKETS: 600.0}, 11, SECOND), plan, Limits(packets=600))
    session.checker, session.guide = Checker(), model.guide(label)
    scheduler.add(session)
    return scheduler, session


def ends(packet: OutPacket) -> frozenset[tuple[bytes, int]] | None:
    five = packet.five_tuple
    return five and frozenset(((five.originator, five.originator_port), (five.responder, five.responder_port)))


def forked(scheduler: Scheduler, session: Session, model: OpenModel, plan: AddressPlan, seed: int = 77) -> Session:
    info = SessionInfo(COPY, session.info.label, session.info.conditions, seed, session.info.start_ns)
    copy = fork(session, info, snapshot.named_things(model.vocabulary, plan))
    place = next(place for place in scheduler.places() if place.session is session)
    scheduler.resume(copy, scheduler.backend.save_state(place.slot))
    return copy


@pytest.mark.parametrize("gateway", ["auto", "none"])
@pytest.mark.parametrize("at", [1, 80, 300])
def test_the_original_does_not_notice_and_the_copy_has_flows_of_its_own(
    model: OpenModel, at: int, gateway: str
) -> None:
    plan, label = address_plan(seed=5, gateway=gateway), "social-h1"
    alone = run(begun(model, plan, label)[0], lambda packets: False)
    scheduler, session = begun(model, plan, label)
    before = run(scheduler, lambda packets: len(packets) >= at)
    opened = session.decoder.context.flows_opened  # type: ignore[attr-defined]
    copy = forked(scheduler, session, model, plan)
    both = run(scheduler, lambda packets: False)
    assert before + [packet for packet in both if packet.session.number == 3] == alone
    copied = [packet for packet in both if packet.session.number == COPY]
    assert len(copied) > 50 and copied[0].ts_ns >= before[-1].ts_ns
    assert [p.data for p in copied] != [p.data for p in alone[at:]][: len(copied)]  # another future
    of_alone = {ends(packet) for packet in alone} - {None}
    assert not of_alone & {ends(packet) for packet in copied}
    old = {ends(packet) for packet in before} - {None}
    assert len(old) <= 1 or any(not parse(p.data, p.orig_len).flags & SYN for p in copied if p.flow < opened)
    clients = {packet.five_tuple.originator for packet in alone if packet.five_tuple}
    macs = {packet.data[6:12] for packet in alone if packet.five_tuple and packet.direction == 0}
    for packet in copied:
        headers = parse(packet.data, packet.orig_len)
        if packet.five_tuple is not None:
            assert packet.five_tuple.originator not in clients
            if packet.direction == 0:
                assert packet.data[6:12] not in macs and packet.data[6:12] == plan.mac(headers.src)
    assert copy.checker is not None
    assert sum(copy.checker.finish().in_packets) == sum(packet.found.bit_count() for packet in copied)
    offline = Checker()
    for packet in copied:
        offline.observe_bytes(packet.ts_ns, packet.data, packet.orig_len)
    found = dict(zip([finding.name for finding in FINDINGS], offline.finish().in_packets))
    assert not found["tcp_checksum"] and not found["udp_checksum"]


def test_the_same_seed_gives_the_same_copy(model: OpenModel) -> None:
    plan = address_plan(seed=5)
    runs = []
    for seed in (77, 77, 78):
        scheduler, session = begun(model, plan, "social-h1")
        run(scheduler, lambda packets: len(packets) >= 40)
        forked(scheduler, session, model, plan, seed)
        both = run(scheduler, lambda packets: len(packets) >= 300)
        runs.append([packet.data for packet in both if packet.session.number == COPY])
    assert runs[0] == runs[1] != runs[2]


def test_a_plan_without_other_hosts_refuses(model: OpenModel) -> None:
    plan = address_plan(("192.0.2.0/31", "2001:db8::/128"), seed=5, hosts=1)
    scheduler, session = begun(model, plan, "social-h1")
    run(scheduler, lambda packets: len(packets) >= 40)
    with pytest.raises(UsageError, match="no other clients"):
        forked(scheduler, session, model, plan)


# --- a real daemon ---


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with Mosquitto(tmp_path_factory.mktemp("m")) as broker:
        text = "seed = 5\n" + section(broker, "one")
        folder = tmp_path_factory.mktemp("d")
        replaced = {"[snapshot]\nenabled = false": f'[snapshot]\ndirectory = "{folder}/kept"'}
        with LiveDaemon(folder, text, replaced, model="embedded") as daemon:
            wait_for(lambda: daemon.said("connected as node one"))
            yield daemon, broker


def names(asker: Asker) -> list[str]:
    return [one["session"] for one in asker.ask("status", {"sessions": True})["live"]]  # type: ignore[attr-defined]


def test_fork_and_snapshot_of_a_running_daemon(live: tuple[LiveDaemon, Mosquitto]) -> None:
    daemon, broker = live
    asker = Asker(broker.folder / "one.s")
    wait_for(lambda: len(names(asker)) >= 8)
    original = names(asker)[0]
    first = asker.ask("fork", {"session": original})
    assert first == {"session": "5-a0", "forked_from": original}
    settings = fleet.settings(None, f"127.0.0.1:{broker.port}")
    replies = fleet.ask(settings, fleet.address("fork", "one", "", False), "fork", {"session": "5-a0"}, 5.0)
    second = replies[0].get("result")
    if second is None:  # the copy may have ended by then
        assert "no live session" in replies[0]["error"]
    else:
        assert second == {"session": "5-a1", "forked_from": "5-a0"}
    with pytest.raises(UsageError, match="no live session '5-a77'"):
        asker.ask("fork", {"session": "5-a77"})
    saved = asker.ask("snapshot")
    assert saved["sessions"] >= 7 and saved["bytes"] > 1000  # type: ignore[operator]
    kept = list((daemon.folder / "kept").glob("*.snapshot"))
    assert kept and kept[-1].stat().st_size == saved["bytes"]
    asker.close()
    assert daemon.stop() == 0, daemon.log
    check_ledger(daemon.folder / "captures", original)


def check_ledger(folder: Path, original: str) -> None:
    """The ledger says whose copy it is; no flow is in two sessions."""
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.open()]
    sessions = [line for line in lines if line["type"] == "session"]
    copies = {line["session"]: line["forked_from"] for line in sessions if "forked_from" in line}
    if "5-a0" in {line["session"] for line in sessions}:  # a slow machine may be stopped before the copy speaks
        assert copies.get("5-a0") == original, copies
    seen: dict[frozenset[tuple[str, int]], str] = {}
    for line in sessions:
        for flow in line["flows"]:
            if flow.get("proto") in (6, 17):
                both = frozenset(((flow["src"], flow["sport"]), (flow["dst"], flow["dport"])))
                assert seen.setdefault(both, line["session"]) == line["session"]
    assert all(read_capture(io.BytesIO(path.read_bytes())) for path in folder.glob("*.pcap"))
