"""Snapshots of sessions: copied at any token, continued in another process, compiled or not, the packets are the
same."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine_fakes import fake_session
from snapshot_runs import PLAN_SEED, Row, copied_on_the_way, sessions

from netssmd.codec.context import Side
from netssmd.engine import snapshot
from netssmd.engine.mix import Arrivals
from netssmd.engine.opening import OpenModel, open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.scheduler import Scheduler
from netssmd.engine.session import RUNNING, Session
from netssmd.errors import SnapshotError
from netssmd.model.checkpoint import embedded_model_path
from netssmd.packet.pcap import Packet

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> OpenModel:
    return open_model(str(embedded_model_path()), "cpu")


def elsewhere(path: Path, interpreted: bool = False) -> dict[int, list[Row]]:
    """The continuation by a fresh process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment["NETSSMD_INTERPRETED"] = "1" if interpreted else ""
    command = [sys.executable, str(ROOT / "tests" / "snapshot_runs.py"), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return msgspec.msgpack.decode(done.stdout, type=dict[int, list[Row]])


@pytest.mark.parametrize(("seed", "first", "last"), [(1, 1, 150), (2, 150, 3000)])
def test_every_label_goes_on_in_another_process(
    model: OpenModel, tmp_path: Path, seed: int, first: int, last: int
) -> None:
    path = tmp_path / "sessions"
    whole = copied_on_the_way("cpu", sessions(model, list(model.labels), seed), model, path, 300, first, last)
    assert len(whole) > (20 if seed == 1 else 8) and sum(map(len, whole.values())) > 1000
    assert elsewhere(path) == whole


def test_compiled_and_interpreted_code_share_snapshots(model: OpenModel, tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    whole = copied_on_the_way("cpu", sessions(model, list(model.labels)[::3], 3), model, path, 60, 100, 500)
    assert sum(map(len, whole.values())) > 300
    assert elsewhere(path, interpreted=True) == whole
    made = subprocess.run(
        [sys.executable, "-c", "import snapshot_runs, sys; from pathlib import Path\n"
         "from netssmd.engine.opening import open_model; m = open_model('embedded', 'cpu')\n"
         "w = snapshot_runs.copied_on_the_way('cpu', snapshot_runs.sessions(m, list(m.labels)[::3], 3), m,"
         " Path(sys.argv[1]), 60, 100, 500)", str(tmp_path / "other")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "NETSSMD_INTERPRETED": "1"}, capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr.decode()[-2000:]
    assert elsewhere(tmp_path / "other") == whole


def test_a_prompt_goes_on_where_it_was(model: OpenModel, tmp_path: Path) -> None:
    """Copied inside a prompt and behind it, hosts kept (recorded identities) and new."""
    lone = sessions(model, ["web"], 5)[0]
    scheduler, recording = Scheduler(model.backend(1)), []
    scheduler.add(lone)
    while len(recording) < 60 and (result := scheduler.step()) is not None:
        recording += [Packet(p.ts_ns, p.data, p.orig_len) for p in result[0]]
    prompt = model.encode_prompt(recording[:40])
    path = tmp_path / "sessions"
    begun = sessions(model, ["web"] * 6, 6, prompt)
    whole = copied_on_the_way("cpu", begun, model, path, 100, 1, len(prompt.tokens) * 4 // 3)
    assert len(whole) >= 4 and sum(map(len, whole.values())) > 200
    assert elsewhere(path) == whole


def test_the_torch_backend(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model = open_model(str(embedded_model_path()), "torch")
    path = tmp_path / "sessions"
    whole = copied_on_the_way("torch", sessions(model, ["web", "ssh"], 7), model, path, 12, 10, 40)
    assert len(whole) == 2 and sum(map(len, whole.values())) > 12
    assert elsewhere(path) == whole


# --- what is refused --------------------------------------------------------------------------------------------------


def a_copy(model: OpenModel, packets: int = 40) -> tuple[Session, Any, dict[str, object]]:
    session = sessions(model, ["web"], 9)[0]
    scheduler = Scheduler(model.backend(1))
    scheduler.add(session)
    while session.packets < packets:
        scheduler.step()
    named = snapshot.named_things(model.vocabulary, session.identities.plan)  # type: ignore[union-attr]
    return session, snapshot.copy(session, named), named


def test_a_copy_shares_nothing_and_comes_back_equal(model: OpenModel) -> None:
    session, value, named = a_copy(model)
    before = snapshot.pack(value)
    assert session.reason == RUNNING
    again = snapshot.restore_session(snapshot.unpack(before), named, snapshot.layout())
    assert snapshot.pack(snapshot.copy(again, named)) == before == snapshot.pack(value)
    flow = again.decoder.context.flows[0]  # type: ignore[attr-defined]
    assert again.decoder.context.sides[flow.sides[0].key][0] is flow  # type: ignore[attr-defined]
    assert again.identities is again.decoder.source  # type: ignore[attr-defined]
    session.decoder.context.flows.clear()  # type: ignore[attr-defined]
    assert snapshot.pack(value) == before


def test_what_is_in_no_row_is_refused_by_name(model: OpenModel) -> None:
    _, _, named = a_copy(model, 1)
    with pytest.raises(SnapshotError, match=r"engine_fakes.FakeDecoder.*no row of KEPT"):
        snapshot.copy(fake_session(), named)
    session, _, named = a_copy(model, 1)
    session.render = functools.partial(print)
    with pytest.raises(SnapshotError, match="only named functions"):
        snapshot.copy(session, named)
    with pytest.raises(SnapshotError, match="msgpack"):
        snapshot.pack([1 << 70])


def test_another_layout_is_refused(model: OpenModel) -> None:
    _, value, named = a_copy(model)
    for change in ("tos", None):
        other = snapshot.layout()
        if change:
            other["codec.context.Side"].remove(change)
        else:
            other["codec.context.Sides"] = other.pop("codec.context.Side")
        with pytest.raises(SnapshotError, match="tos" if change else "class codec.context.Sides, which this version"):
            snapshot.restore_session(value, named, other)


def test_layouts_may_differ_in_order(model: OpenModel) -> None:
    """A later version may list its classes and attributes in another order."""
    _, value, named = a_copy(model)
    names = list(snapshot.layout())
    turned = {name: snapshot.layout()[name] for name in reversed(names)}

    def turn(part: Any) -> Any:
        if type(part) is not list:
            return part
        first = part[0]
        if first >= snapshot.KIND:
            first = snapshot.KIND + len(names) - 1 - (first - snapshot.KIND)
        return [first, *map(turn, part[1:])]

    again = snapshot.restore_session(turn(value), named, turned)
    assert snapshot.copy(again, named) == value


def test_damage_is_one_error(model: OpenModel) -> None:
    """Any change of a value gives a session that can be asked for its next draw, or a SnapshotError."""
    _, value, named = a_copy(model)
    packed = snapshot.pack(value)
    draw = random.Random(4)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(packed)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        try:
            snapshot.restore_session(snapshot.unpack(bytes(damaged)), named, snapshot.layout()).row()
        except SnapshotError:
            refused += 1
    assert refused > 500
    for part in (None, 7, [], [99], [snapshot.REF, 0], [snapshot.REF, -1], [snapshot.NAMED, "os"], {"a": 1},
                 [snapshot.PARTIAL, "plan", [3], [2]], [snapshot.KIND + 1]):  # fmt: skip
        with pytest.raises(SnapshotError):
            snapshot.restore_session(part, named)
    deep: Any = 1
    for _ in range(100_000):
        deep = [snapshot.LIST, deep]
    with pytest.raises(SnapshotError):
        snapshot.restore_session(deep, named)


def test_arrivals_go_on() -> None:
    """Other things than sessions are kept the same way."""
    named: dict[str, object] = {}
    arrivals = Arrivals(5, 10**9, 3, 0)
    assert arrivals.take(0, 0)
    again = snapshot.restore(snapshot.copy(arrivals, named), named)
    for now_ns in range(0, 10**10, 10**8):
        assert arrivals.take(now_ns, 0) == again.take(now_ns, 0)
    assert arrivals.started == again.started > 3


def test_every_class_declares_its_attributes() -> None:
    assert "least" in snapshot.layout()["codec.context.Side"]
    assert "_block" not in snapshot.layout()["engine.sampling.Stream"]
    assert {kept.cls for kept in snapshot.KEPT} >= {Session, Side}
    assert address_plan(seed=PLAN_SEED).seed == PLAN_SEED
