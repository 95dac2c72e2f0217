"""What a snapshot of many sessions holds the engine threads for, in processor time, and what it writes.

python tools/bench_snapshot.py [--sessions 64] [--packets 20000] [--model embedded]

The sessions make so many packets, then are copied as a snapshot copies them (daemon/snapshots.py): one after another
their recurrent states, and all else that they are, packed. Three rounds, each a row; the daemon's own figure is
`netssmd_snapshot_stall_seconds`, wall time that ends when the slowest engine thread and the output thread have copied.
"""

from __future__ import annotations

import argparse
import time

from netssmd.engine import snapshot
from netssmd.engine.opening import MAX_FLOWS, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import derive
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import Session, SessionInfo
from netssmd.packet.compliance import Checker


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--packets", type=int, default=20_000, help="that they make before")
    parser.add_argument("--model", default="embedded")
    arguments = parser.parse_args()
    model = open_model(arguments.model, "cpu")
    plan = address_plan(seed=1)
    scheduler = Scheduler(model.backend(arguments.sessions))
    started = packets = 0

    def begin() -> None:
        nonlocal started
        label = model.labels[started % len(model.labels)]
        session = model.session(SessionInfo(started, label, {}, derive(1, "session", started), 0), plan)
        session.checker = Checker(max_flows=MAX_FLOWS)
        scheduler.add(session)
        started += 1

    while packets < arguments.packets:
        while scheduler.free:
            begin()
        result = scheduler.step()
        packets += len(result[0]) if result else 0
    places = scheduler.places()
    flows = sum(flows_of(place.session) for place in places)
    print(f"{len(places)} sessions, {packets} packets, {flows} flows")
    named = snapshot.named_things(model.vocabulary, plan)
    for _ in range(3):
        begun = time.process_time_ns()
        states = sum(len(scheduler.backend.save_state(place.slot)) for place in places)
        between = time.process_time_ns()
        packed = sum(len(snapshot.pack(snapshot.copy(place.session, named))) for place in places)
        ended = time.process_time_ns()
        print(
            f"states {states / 1e6:.1f} MB in {(between - begun) / 1e6:.1f} ms, the rest {packed / 1e6:.1f} MB in "
            f"{(ended - between) / 1e6:.1f} ms of processor time"
        )


def flows_of(session: Session) -> int:
    context = getattr(session.decoder, "context", None)
    return 0 if context is None else len(context.flows)


if __name__ == "__main__":
    main()
