"""When snapshots are taken, and what becomes of them: by the clock, at a command, at the stop, and at the next start.

`Keeper.find` is asked first: the newest snapshot that fits gives the run its seed and its sessions; what does not fit
is set aside with one line. `put_back` fills the lanes before they start. `take` makes a snapshot of the running daemon,
`last_moment` and `conclude` make the one of a daemon that stops. A run that ends by itself leaves none.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from netssmd import __version__
from netssmd.daemon.board import Asked, Board, Over
from netssmd.daemon.lanes import EngineLane
from netssmd.daemon.output_lane import OutputLane
from netssmd.daemon.snapshots import Cut, Saved, Store, frames
from netssmd.engine import snapshot
from netssmd.engine.mix import Arrivals
from netssmd.engine.session import Limits, Session, SessionInfo
from netssmd.errors import NetssmdError, SnapshotError
from netssmd.output.ledger import SessionMeta
from netssmd.packet.compliance import FINDINGS

STAND_SECONDS: Final = 30.0  # the lanes stand still for a snapshot within this time, or it is given up

log = logging.getLogger("netssmd")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a snapshot and a run must have in common. seed 0: the run takes the snapshot's."""

    model_hash: str
    pace: str
    seed: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """A snapshot that a run goes on from, its sessions made again."""

    saved: Saved
    sessions: list[tuple[int, Session, bytes, int, bool]]  # lane, session, state, steps left, in the group?
    arrivals: Arrivals

    @property
    def seed(self) -> int:
        return int(self.saved.head["seed"])

    @property
    def session_ns(self) -> int:
        """Session time of the snapshot."""
        return int(self.saved.board["session_ns"])


@dataclass(frozen=True, slots=True)
class Written:
    """A snapshot that was taken. stood_ns: how long the lanes stood for it."""

    id: str
    path: Path
    bytes: int
    sessions: int
    packets: int
    stood_ns: int
    wrote_ns: int


class Keeper:
    """Takes and finds the snapshots of one daemon.

    Attributes:
        written, failed, refused: snapshots so far; failed ones were not written, refused ones not resumed.
        newest: the last one written by this run. taken_ns, wall_ns: monotonic time and wall time of it, 0 before it.
    """

    def __init__(self, store: Store, identity: Identity) -> None:
        self.store = store
        self.identity = identity
        self.written = 0
        self.failed = 0
        self.refused = 0
        self.newest: Written | None = None
        self.taken_ns = 0
        self.wall_ns = 0
        self.resumed: Resumed | None = None
        self._cut_last: Cut | None = None
        self._taking = threading.Lock()

    @property
    def age_seconds(self) -> float:
        """Since the newest snapshot of this run; 0 before it."""
        return (time.monotonic_ns() - self.taken_ns) / 1e9 if self.taken_ns else 0.0

    # --- at the start ---------------------------------------------------------------------------------------------

    def find(
        self, named: Callable[[int, Mapping[str, Any]], snapshot.Named], fresh: bool = False
    ) -> Resumed | None:
        """The newest snapshot that fits; others are set aside, all of them if the run shall begin anew. `named`: from a
        seed, and address plans of the run before, what sessions refer to."""
        for path in reversed(self.store.paths()):
            if fresh:
                self._put_aside(path, "the run begins anew, as asked")
                continue
            try:
                self.resumed = self._open(path, named)
                return self.resumed
            except SnapshotError as error:
                self.refused += 1
                self._put_aside(path, str(error))
        return None

    def _put_aside(self, path: Path, why: str) -> None:
        aside = self.store.set_aside(path)
        log.warning("snapshot %s: %s; %s", path, why, f"set aside as {aside.name}" if aside else "it stays where it is")

    def _open(self, path: Path, named: Callable[[int, Mapping[str, Any]], snapshot.Named]) -> Resumed:
        saved = self.store.read(path)
        head, own = saved.head, self.identity
        try:
            for what, found, right in (("model", head["model_hash"], own.model_hash), ("pace", head["pace"], own.pace)):
                if found != right:
                    raise SnapshotError(f"made with {what} {str(found)[:12]}; this run has {right[:12]}")
            seed = int(head["seed"])
            if own.seed and own.seed != seed:
                raise SnapshotError(f"made with seed {seed}; this run has {own.seed}")
            things = named(seed, head.get("plans", {}))
            layout = head["layout"]
            arrivals = snapshot.restore(saved.board["arrivals"], things, layout)
            if type(arrivals) is not Arrivals:
                raise SnapshotError("damaged: no arrivals")
            sessions = [
                (lane, snapshot.restore_session(value, things, layout), state, left, active)
                for lane, value, state, left, active in saved.sessions
            ]
            if head["findings"] != [finding.name for finding in FINDINGS]:
                for _, session, *_ in sessions:
                    session.checker = None  # another version's: its counts mean something else
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise SnapshotError(f"damaged: {type(error).__name__}: {error}") from error
        return Resumed(saved, sessions, arrivals)

    def put_back(self, board: Board, lanes: Sequence[EngineLane], output: OutputLane) -> None:
        """Before the lanes start: sessions into slots, packets into the release, the board as it was. Raises
        SnapshotError, after the snapshot was set aside, for what only a backend can find wrong."""
        resumed = self.resumed
        if resumed is None:
            return
        saved = resumed.saved
        try:
            kept = saved.board
            same = len(kept["lanes"]) == len(lanes)
            board.numbers, board.asked_numbers = int(kept["numbers"]), int(kept["asked_numbers"])
            board.asked.extend(Asked(SessionInfo(*part[:5]), Limits(*part[5:])) for part in kept["asked"])
            board.forked.update({int(number): str(name) for number, name in kept.get("forked", ())})
            board.floors[:] = kept["floors"] if same else [min(kept["floors"])] * len(lanes)
            if same:
                for lane, what in zip(lanes, kept["lanes"]):
                    lane.go_on(what)
            for place, session, state, left, active in resumed.sessions:
                lane = lanes[place] if same else min(lanes, key=lambda lane: board.live[lane.index])
                lane.take_back(session, state, left, active and same)
            over = [Over(SessionInfo(*part[:5]), int(part[5]), str(part[6])) for part in kept["over"]]
            output.go_on(int(kept["released_ns"]), saved.packets, over)
        except (SnapshotError, TypeError, ValueError, KeyError, IndexError) as error:
            self.refused += 1
            self._put_aside(saved.path, f"cannot be resumed: {error}")
            raise SnapshotError(f"snapshot {saved.path}: cannot be resumed: {error}; start again without it") from error
        ago = (time.time_ns() - int(saved.head["wall_ns"])) / 1e9
        log.info(
            "resumed %d sessions and %d packets of snapshot %s, taken %.1f s ago%s",
            len(resumed.sessions), len(saved.packets), saved.id, ago,
            "" if saved.head["last"] else " by a run that was killed",
        )  # fmt: skip

    def told(self, lag_ns: int) -> dict[int, dict[str, Any]]:
        """What the ledger says of the sessions that go on, by number. `lag_ns`: of session time, now."""
        if self.resumed is None:
            return {}
        saved = self.resumed.saved
        what = {
            "snapshot": saved.id,
            "ts_ns": self.resumed.session_ns + int(saved.board["lag_ns"]),
            "shift_ns": lag_ns - int(saved.board["lag_ns"]),
            "clean": bool(saved.head["last"]),
        }
        numbers = {session.info.number for _, session, *_ in self.resumed.sessions}
        return dict.fromkeys(numbers | {packet.session.number for packet in saved.packets}, what)

    # --- while it runs --------------------------------------------------------------------------------------------

    def begin(
        self, named: Callable[[], snapshot.Named], plans: Callable[[], Mapping[str, Any]], board: Board,
        lanes: Sequence[EngineLane], output: OutputLane, on_cut: Callable[[Sequence[SessionMeta], str], None],
    ) -> None:  # fmt: skip
        """What snapshots are taken of. `named`: what sessions refer to now, `plans`: address plans among that."""

        def cut(id: str, last: bool = False) -> Cut:
            return Cut(named(), board, lanes, output, id, last, on_cut)

        self._cut = cut
        self._plans = plans
        self._board = board

    def _id(self) -> str:
        return f"{self.identity.seed}-{time.time_ns() // 1_000_000:x}"

    def take(self) -> Written:
        """A snapshot of the running daemon. Blocks until it is written, the lanes only while they copy. Raises
        SnapshotError."""
        with self._taking:
            cut = self._cut(self._id())
            for lane in cut.lanes:
                lane.orders.put(partial(cut.stand, lane))
            deadline_ns = time.monotonic_ns() + int(STAND_SECONDS * 1e9)
            try:
                while not cut.done.wait(0.05):
                    if cut.over():
                        raise SnapshotError("snapshot: none was taken, since the daemon ends")
                    if time.monotonic_ns() > deadline_ns:
                        cut.done.set()
                        raise SnapshotError(f"snapshot: the lanes did not stand still within {STAND_SECONDS:g} s")
                return self._write(cut)
            except SnapshotError as error:
                self.failed += 1
                raise error

    def _write(self, cut: Cut) -> Written:
        if cut.error is not None:
            raise SnapshotError(f"snapshot: {cut.error}")
        begun_ns = time.monotonic_ns()
        head = {
            "id": cut.id,
            "netssmd": __version__,
            "model_hash": self.identity.model_hash,
            "pace": self.identity.pace,
            "seed": self.identity.seed,
            "wall_ns": time.time_ns(),
            "last": cut.last,
            "findings": [finding.name for finding in FINDINGS],
            "plans": self._plans(),
        }
        path, size = self.store.write(frames(cut, head))
        sessions = sum(len(copy.sessions) for copy in cut.copies.values())
        self.newest = Written(
            cut.id, path, size, sessions, len(cut.packets), cut.stood_ns, time.monotonic_ns() - begun_ns
        )
        self.written += 1
        self.taken_ns, self.wall_ns = time.monotonic_ns(), time.time_ns()
        return self.newest

    def take_or_tell(self) -> None:
        """`take`, by the clock: what goes wrong is logged, and tried again next time."""
        try:
            written = self.take()
        except NetssmdError as error:
            log.warning("%s", error)
        else:
            log.debug(
                "snapshot %s: %d sessions, %d packets, %.1f MB; the lanes stood for %.1f ms", written.path,
                written.sessions, written.packets, written.bytes / 1e6, written.stood_ns / 1e6,
            )  # fmt: skip

    # --- at the end -----------------------------------------------------------------------------------------------

    def last_moment(self) -> None:
        """The daemon is told to stop: its lanes shall keep their sessions. Call it before `board.stop` is set. A
        run that is at its own end goes there."""
        if self._cut_last is None and not self._board.done:
            self._cut_last = self._cut(self._id(), last=True)
            self._board.last_moment = self._cut_last

    def conclude(self, death: BaseException | None) -> None:
        """The lanes are over: write the last moment; a run that came to its own end leaves no snapshot, and one that
        died soon after it resumed does not resume from there again."""
        if death is not None:
            if self.resumed is not None and self.newest is None:
                self._put_aside(self.resumed.saved.path, f"the run that went on from it died of {death!r}")
        elif self._cut_last is None or (self._board.done and not self._cut_last.owes):
            self.store.discard()
        elif self._cut_last.done.is_set() or self._cut_last.error is not None:
            with self._taking, contextlib.suppress(SnapshotError):
                try:
                    written = self._write(self._cut_last)
                except SnapshotError as error:
                    self.failed += 1
                    log.error("%s: the sessions of this run are lost, or those of an older snapshot go on", error)
                    raise
                log.info("snapshot %s: %d sessions go on at the next start", written.path, written.sessions)
