"""`netssmd calibrate`: sessions are drawn from a model, and what they say too often or too rarely is put right.

In: a model folder and the data that it was trained on. Out: weights in the model's conduct.json (learn/calibrate.py),
written after each round; a line a round on stderr, and on stdout how far drawn sessions are from training before and
after, or with --json one object.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import CheckpointError, OutputError, UsageError

if TYPE_CHECKING:
    from netssmd.codec.vocab import Vocabulary
    from netssmd.engine.opening import OpenModel
    from netssmd.engine.scheduler import Backend
    from netssmd.engine.session import OutPacket, Session
    from netssmd.learn.calibrate import Tally
    from netssmd.model.backend import Ints

GROUP = 16  # sessions a call


@click.command
@click.argument("model", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Data folder that it was trained on.")
@click.option("--rounds", type=click.IntRange(1, 100), default=4, show_default=True, help="Of drawing and adjusting.")
@click.option("--sessions", type=click.IntRange(2), default=34, show_default=True, help="Of each label, a round.")
@click.option("--max-packets", type=click.IntRange(1), default=12_000, show_default=True, help="Cut sessions here.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Engine threads. Default: one a processor core.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def command(
    model: Path, data: Path, rounds: int, sessions: int, max_packets: int, seed: int, threads: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Weigh a model's tokens, so that its sessions say in the sum what training says.

    A round draws so many sessions of each label, about a minute and a half a thousand sessions of a thousand packets on
    two cores. MODEL's conduct.json is written anew after each; what another calibration wrote there is dropped first.
    """
    from netssmd.codec.vocab import Vocabulary
    from netssmd.engine.opening import open_model
    from netssmd.learn.calibrate import Weights, tally
    from netssmd.learn.dataset import open_dataset
    from netssmd.model.conduct import CONDUCT

    opened = open_model(str(model), "cpu")
    vocabulary = opened.vocabulary
    if not isinstance(vocabulary, Vocabulary):
        raise UsageError(f"{model}: a model of the byte codec; weights are for models of the context codec")
    if not opened.conduct.tokens:
        raise CheckpointError(f"{model / CONDUCT}: tells no label's tokens; train the model again, or fine-tune it")
    prepared = open_dataset(data)
    if Vocabulary.from_json(prepared.vocabulary).to_json() != vocabulary.to_json():
        raise UsageError(f"{data}: prepared with another vocabulary; `netssmd prepare DIR -o DATA --model {model}`")
    training = tally(prepared.train, vocabulary)
    labels = [label for label in opened.labels if label in opened.conduct.tokens]
    threads = threads or len(os.sched_getaffinity(0))
    weights, news = Weights(), []
    for number in range(rounds + 1):  # the last one only looks
        _write(model / CONDUCT, weights.document(vocabulary))
        drawn = _draw(open_model(str(model), "cpu"), labels, sessions, max_packets, (seed, number), threads)
        news.append(training.distances(drawn))
        far = ", ".join(f"{field} {distance:.3f}" for field, distance in news[-1].items())
        click.echo(f"round {number} of {rounds}: {far}", err=True)
        if number < rounds:
            weights.adjust(training, drawn)
    if as_json:
        click.echo(json.dumps({"model": str(model), "rounds": rounds, "distances": news}))
    else:
        click.echo("\n".join(_table(news[0], news[-1])))


def _table(first: dict[str, float], last: dict[str, float]) -> list[str]:
    lines = ["total variation between what training and drawn sessions say", f"{'field':12} {'before':>7} {'after':>7}"]
    return lines + [f"{field:12} {first[field]:7.3f} {last.get(field, 0.0):7.3f}" for field in first]


def _write(path: Path, said: dict[str, Any]) -> None:
    """conduct.json with these keys anew. Raises OutputError."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_text(json.dumps({**json.loads(path.read_text()), **said}, separators=(",", ":")) + "\n")
        os.replace(fresh, path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


class _Unheard:
    """Every session's sink: nothing is done with its packets."""

    def write(self, packet: OutPacket) -> None:
        pass

    def end(self, session: Session) -> None:
        pass


class Listener:
    """A backend that tallies what it draws. Slots are given back by `reset`, or by `close` at the end."""

    def __init__(self, backend: Backend, heard: Tally, vocabulary: Vocabulary) -> None:
        from netssmd.codec.vocab import FEATURE_COUNT, FLOW_SERVICE

        self._backend, self._heard = backend, heard
        self._label = vocabulary.label_row(vocabulary.labels[0])
        self._service = vocabulary.feature_base[FLOW_SERVICE]
        self._column = vocabulary.width - FEATURE_COUNT + FLOW_SERVICE
        self._said: list[list[tuple[int, int, int]]] = [[] for _ in range(backend.slots)]  # label, token, service
        self.prefill, self.verify = backend.prefill, backend.verify
        self.save_state, self.load_state = backend.save_state, backend.load_state

    @property
    def slots(self) -> int:
        return self._backend.slots

    @property
    def call_rows(self) -> float:
        return self._backend.call_rows

    def reset(self, slot: int) -> None:
        self._tell(slot)
        self._backend.reset(slot)

    def step(self, slots: Ints, rows: Ints, *args: Any, **kwargs: Any) -> Ints:
        tokens = self._backend.step(slots, rows, *args, **kwargs)
        labels, services = rows[:, 1].tolist(), rows[:, self._column].tolist()
        for slot, label, token, service in zip(slots.tolist(), labels, tokens.tolist(), services, strict=True):
            self._said[slot].append((label - self._label, token, service - self._service))
        return tokens

    def close(self) -> None:
        for slot in range(self.slots):
            self._tell(slot)

    def _tell(self, slot: int) -> None:
        import numpy as np

        said, self._said[slot] = self._said[slot], []
        if said:
            labels, tokens, services = np.array(said).T
            self._heard.hear(int(labels[0]), tokens, services)


def _draw(
    opened: OpenModel, labels: list[str], each: int, max_packets: int, seed: tuple[int, int], threads: int
) -> Tally:
    """What so many sessions of each label say."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from netssmd.codec.vocab import Vocabulary
    from netssmd.engine.batch import Batch, run_batch
    from netssmd.engine.mix import default_mix, draw_conditions
    from netssmd.engine.plan import address_plan
    from netssmd.engine.sampling import Stream, derive
    from netssmd.engine.session import Limits, SessionInfo
    from netssmd.learn.calibrate import Tally
    from netssmd.model.backend import lend_threads

    assert isinstance(opened.vocabulary, Vocabulary)
    plan, limits, temperatures = address_plan(seed=seed[0]), Limits(max_packets), opened.temperatures(1.0, {})
    ranges = default_mix(labels, seed[0]).conditions

    def session(i: int) -> Session:
        own = derive(*seed, "calibrate", labels[i % len(labels)], i // len(labels))
        conditions = draw_conditions(ranges, Stream(derive(own, "mix")))
        info = SessionInfo(i, labels[i % len(labels)], conditions, own, 0)
        return opened.session(info, plan, limits, temperatures, payload="zero")

    count = each * len(labels)
    threads = min(threads, count)
    backend = opened.backend(threads * min(GROUP, -(-count // threads)))
    lend_threads(backend, threads)
    listener = Listener(backend, heard := Tally(opened.vocabulary), opened.vocabulary)
    nobody = _Unheard()
    batch = Batch(listener, count, session, lambda i: nobody, threads, GROUP)
    columns = TextColumn("sessions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True
    ) as progress:
        task = progress.add_task("sessions", total=count)
        run_batch(batch, lambda: progress.update(task, completed=batch.done))
    listener.close()
    return heard
