"""Sessions that are copied on the way and continued in another process; `python snapshot_runs.py FILE` is that process.

The file is msgpack: how the model is opened, the layout, and for each session its copy, its state and its seat. What
comes back on standard output are the packets of each session after the copy, as msgpack.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec

from netssmd.engine import snapshot
from netssmd.engine.opening import OpenModel, Prompt, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import OutPacket, Session, SessionInfo
from netssmd.packet.compliance import Checker

Row = tuple[int, bytes, int, int, int, int, int]
PLAN_SEED = 3


def row(packet: OutPacket) -> Row:
    return packet.ts_ns, packet.data, packet.orig_len, packet.flow, packet.direction, packet.kind, packet.found


def run_on(scheduler: Scheduler, packets: dict[int, list[Row]], most: int) -> None:
    """Until each session has ended or has `most` packets."""
    while (result := scheduler.step()) is not None:
        for packet in result[0]:
            packets[packet.session.number].append(row(packet))
        for session in scheduler.sessions():
            if len(packets[session.info.number]) >= most:
                session.cut()


def sessions(model: OpenModel, labels: list[str], seed: int, prompt: Prompt | None = None) -> list[Session]:
    plan = address_plan(seed=PLAN_SEED)
    begun = [
        model.session(
            SessionInfo(number, label, {"rtt_ms": 30.0}, seed * 1000 + number, 10**18), plan,
            temperatures=model.temperatures(1.0, {"iat": 0.9}), snaplen=200 if number % 3 == 1 else 0,
            prompt=prompt, keep_hosts=number % 2 == 0,
        )
        for number, label in enumerate(labels)
    ]  # fmt: skip
    for session in begun[::2]:
        session.checker = Checker(max_flows=64)
    return begun


def copied_on_the_way(
    kind: str, begun: list[Session], model: OpenModel, path: Path, most: int, first: int, last: int
) -> dict[int, list[Row]]:
    """Run sessions, copy each after `first` to `last` tokens into the file, and run on. Return: packets after the
    copies."""
    named = snapshot.named_things(model.vocabulary, begun[0].identities.plan)  # type: ignore[union-attr]
    backend = model.backend(len(begun))
    scheduler = Scheduler(backend, prefill_chunk=5)
    draw = random.Random(len(begun) + first)
    points = {session.info.number: draw.randint(first, last) for session in begun}
    for session in begun:
        scheduler.add(session)
    copies: list[Any] = []
    packets: dict[int, list[Row]] = {}
    while points and (result := scheduler.step()) is not None:
        for packet in result[0]:
            if packet.session.number in packets:
                packets[packet.session.number].append(row(packet))
        for place in scheduler.places():
            session = place.session
            number = session.info.number
            if number in points and session.tokens >= points[number]:
                del points[number]
                packets[number] = []
                copies.append([snapshot.copy(session, named), backend.save_state(place.slot)])
            elif len(packets.get(number, [])) >= most:
                session.cut()
        points = {n: at for n, at in points.items() if n in {s.info.number for s in scheduler.sessions()}}
    path.write_bytes(snapshot.pack([kind, str(model.folder), snapshot.layout(), most, copies]))
    run_on(scheduler, packets, most)
    return {number: rows[:most] for number, rows in packets.items()}


def continued(path: Path) -> dict[int, list[Row]]:
    """What the copies of the file become."""
    kind, folder, layout, most, copies = snapshot.unpack(path.read_bytes())
    model = open_model(folder, kind)
    named = snapshot.named_things(model.vocabulary, address_plan(seed=PLAN_SEED))
    scheduler = Scheduler(model.backend(len(copies)))
    packets: dict[int, list[Row]] = {}
    for value, state in copies:
        session = snapshot.restore_session(value, named, layout)
        packets[session.info.number] = []
        scheduler.resume(session, state)
    run_on(scheduler, packets, most)
    return {number: rows[:most] for number, rows in packets.items()}


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.msgpack.encode(continued(Path(sys.argv[1]))))
