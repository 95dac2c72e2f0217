"""Two sets of sessions side by side, label by label: what each looks like, and how far apart they are.

In: real, synthetic and (for the floor) a second set of real sessions. Out: one `Table` a topic. Each column is a row of
TOPICS: a `Measure` describes one set, a `Distance` compares two. The overall lines are means over labels, so that every
label counts the same; `benign` leaves the attacks out.

Distances: KS is the largest gap between two empirical distribution functions; JS is scipy's `jensenshannon` (the
distance, base e), here over packet sizes byte by byte. Both are 0 for equal sets; what chance alone makes of them is
the floor's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from netssmd.learn.evaluate.bootstrap import Interval, interval, resample
from netssmd.learn.evaluate.sessions import Session, by_label
from netssmd.packet.compliance import INDEX

Group = Sequence[Session]
Groups = dict[str, list[Session]]
OVERALL = "all labels"
BENIGN = "benign"
ATTACK = "attack-"
SILENCE_NS = 500_000_000
LATE = 1000  # packets after which set-up is over (the paper's long sessions)


def ks(a: Any, b: Any) -> float:
    """Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate((a, b))
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def js(p: Any, q: Any) -> float:
    """Jensen-Shannon distance (base e) of two histograms on the same bins."""
    p, q = p / p.sum(), q / q.sum()
    mean = (p + q) / 2

    def divergence(part: Any) -> float:
        positive = part > 0
        return float((part[positive] * np.log(part[positive] / mean[positive])).sum())

    return float(np.sqrt(max(divergence(p) + divergence(q), 0) / 2))


def size_histogram(group: Group, top: int = 65536 + 64) -> Any:
    return np.bincount(np.minimum(sizes(group), top), minlength=top + 1)


def sizes(group: Group) -> Any:
    return np.concatenate([session.sizes for session in group])


def gaps(group: Group) -> Any:
    """Seconds between packets, each session's share alike: none has more than 5,000 of them."""
    return np.concatenate([session.gaps_ns[:5000] for session in group]) / 1e9


def up_bytes(session: Session) -> float:
    return float(session.sizes[session.up].sum())


def down_bytes(session: Session) -> float:
    return float(session.sizes[~session.up].sum())


def each(value: Callable[[Session], float]) -> Callable[[Group], Any]:
    """The values of all sessions."""
    return lambda group: np.array([value(session) for session in group])


PACKETS = each(lambda session: session.packets)
DURATION = each(lambda session: session.duration_seconds)
FLOWS = each(lambda session: float(session.flow.max() + 1))
DOWN_UP = each(lambda session: (down_bytes(session) + 1) / (up_bytes(session) + 1))
UP_SHARE = each(lambda session: float(session.up.mean()))
BIT_RATE = each(lambda session: 8e-6 * float(session.sizes.sum()) / max(session.duration_seconds, 1e-3))


def median(values: Callable[[Group], Any]) -> Callable[[Group], float | None]:
    def of(group: Group) -> float | None:
        sample = values(group)
        return float(np.median(sample)) if len(sample) else None

    return of


def apart(values: Callable[[Group], Any]) -> Callable[[Group, Group], float | None]:
    """KS distance of the values of two groups."""

    def of(real: Group, other: Group) -> float | None:
        a, b = values(real), values(other)
        return ks(a, b) if len(a) and len(b) else None

    return of


def gap_quantile(q: float) -> Callable[[Group], float | None]:
    """Milliseconds."""

    def of(group: Group) -> float | None:
        sample = gaps(group)
        return 1000 * float(np.quantile(sample, q)) if len(sample) else None

    return of


def burstiness(session: Session) -> float:
    """(s - m) / (s + m) of the gaps (Goh and Barabasi, 2008): -1 regular, 0 Poisson, 1 bursts."""
    gaps = session.gaps_ns
    spread, mean = float(gaps.std()), float(gaps.mean())
    return (spread - mean) / (spread + mean) if spread + mean else 0.0


def autocorrelation(session: Session) -> float:
    """Of the logarithm of the gaps, at lag 1."""
    logs = np.log10(np.maximum(session.gaps_ns, 1000))
    here, there = logs[:-1] - logs.mean(), logs[1:] - logs.mean()
    return float((here * there).mean() / logs.var()) if logs.var() else 0.0


def _periods(session: Session) -> tuple[Any, Any]:
    """Seconds of silences longer than SILENCE, and of the activity between them."""
    long = session.gaps_ns > SILENCE_NS
    edges = np.concatenate(([0], np.flatnonzero(long) + 1, [session.packets]))
    on = session.times_ns[edges[1:] - 1] - session.times_ns[edges[:-1]]
    return session.gaps_ns[long] / 1e9, on / 1e9


def off_share(session: Session) -> float:
    """Share of the time that is silence."""
    return float(_periods(session)[0].sum()) / max(session.duration_seconds, 1e-9)


def silences_per_minute(session: Session) -> float:
    return 60 * len(_periods(session)[0]) / max(session.duration_seconds, 1.0)


def on_seconds(session: Session) -> float:
    return float(np.median(_periods(session)[1]))


def of_long(value: Callable[[Session], float], packets: int) -> Callable[[Group], Any]:
    """The values of the sessions that have so many packets."""
    return lambda group: np.array([value(session) for session in group if session.packets >= packets])


def phase_change(session: Session) -> float:
    """JS distance between the signed sizes of a session's first LATE packets and of those after them."""
    signed = np.where(session.up, session.sizes, -session.sizes).astype(np.int64)
    least = int(signed.min())
    n = int(signed.max()) - least + 1
    return js(np.bincount(signed[:LATE] - least, minlength=n), np.bincount(signed[LATE:] - least, minlength=n))


def _late(session: Session, value: Callable[[Any, Any, Any], float]) -> float:
    """`value` of (sizes, up, seconds) after the first LATE packets."""
    span = float(session.times_ns[-1] - session.times_ns[LATE]) / 1e9
    return value(session.sizes[LATE:], session.up[LATE:], span)


def late_up(session: Session) -> float:
    return _late(session, lambda sizes, up, seconds: float(up.mean()))


def late_size(session: Session) -> float:
    return _late(session, lambda sizes, up, seconds: float(sizes.mean()))


def late_rate(session: Session) -> float:
    return _late(session, lambda sizes, up, seconds: 8e-6 * float(sizes.sum()) / max(seconds, 1e-3))


def flow_share(finding: str) -> Callable[[Group], float | None]:
    """Share of the TCP flows that have a finding."""
    i = INDEX[finding]
    return lambda group: _ratio(sum(s.tcp.in_flows[i] for s in group), sum(s.tcp.flows for s in group))


def ending_share(ending: str) -> Callable[[Group], float | None]:
    """Share of the TCP flows with an ending, in sessions that came to their own end."""

    def of(group: Group) -> float | None:
        whole = [session for session in group if not session.capped]
        return _ratio(sum(s.tcp.endings[ending] for s in whole), sum(s.tcp.flows for s in whole))

    return of


def packet_rate(finding: str) -> Callable[[Group], float | None]:
    """TCP packets with a finding, in 1,000."""
    i = INDEX[finding]

    def of(group: Group) -> float | None:
        ratio = _ratio(sum(s.tcp.in_packets[i] for s in group), sum(s.tcp.tcp_packets for s in group))
        return None if ratio is None else 1000 * ratio

    return of


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _rtts(group: Group) -> tuple[Any, Any]:
    """Of the sessions that have both: median handshake round trip and the condition, in ms."""
    pairs = [
        (float(np.median(session.rtts_ns)) / 1e6, session.conditions["rtt_ms"])
        for session in group
        if session.rtts_ns and session.conditions.get("rtt_ms", 0) > 0
    ]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def rtt_measured(group: Group) -> float | None:
    rtts = [rtt for session in group for rtt in session.rtts_ns]
    return float(np.median(rtts)) / 1e6 if rtts else None


def rtt_ratio(group: Group) -> float | None:
    measured, wanted = _rtts(group)
    return float(np.median(measured / wanted)) if len(wanted) else None


def rtt_off(group: Group) -> float | None:
    """Median factor between measured and wanted, whichever is larger: 1 is exact."""
    measured, wanted = _rtts(group)
    off = np.abs(np.log(np.maximum(measured, 1e-3) / wanted))
    return float(np.exp(np.median(off))) if len(wanted) else None


def rtt_rank(group: Group) -> float | None:
    """Spearman's rank correlation of measured and wanted."""
    measured, wanted = _rtts(group)
    if len(wanted) < 4 or np.ptp(wanted) == 0 or np.ptp(measured) == 0:
        return None
    return float(np.corrcoef(_ranks(measured), _ranks(wanted))[0, 1])


def _ranks(values: Any) -> Any:
    order = np.sort(values)
    return (np.searchsorted(order, values, "left") + np.searchsorted(order, values, "right")) / 2


class Measure(NamedTuple):
    """A column that describes one set."""

    name: str
    form: str
    of: Callable[[Group], float | None]


class Distance(NamedTuple):
    """A column that compares a set with the real one."""

    name: str
    form: str
    between: Callable[[Group, Group], float | None]


class Topic(NamedTuple):
    name: str
    note: str
    columns: tuple[Measure | Distance, ...]


def _js_sizes(real: Group, other: Group) -> float | None:
    return js(size_histogram(real), size_histogram(other))


TOPICS: tuple[Topic, ...] = (
    Topic(
        "sessions",
        "medians over sessions; up is from a flow's originator",
        (
            Measure("sessions", "{:,.0f}", lambda group: float(len(group))),
            Measure("packets", "{:,.0f}", median(PACKETS)),
            Measure("seconds", "{:,.1f}", median(DURATION)),
            Measure("flows", "{:,.0f}", median(FLOWS)),
            Measure("down/up bytes", "{:,.2f}", median(DOWN_UP)),
            Measure("packets up", "{:.0%}", median(UP_SHARE)),
            Measure("Mbit/s", "{:,.2f}", median(BIT_RATE)),
            Measure("capped", "{:.0%}", lambda group: float(np.mean([session.capped for session in group]))),
        ),
    ),
    Topic(
        "distances of sessions",
        "KS distance of the values of sessions",
        (
            Distance("packets", "{:.2f}", apart(PACKETS)),
            Distance("seconds", "{:.2f}", apart(DURATION)),
            Distance("flows", "{:.2f}", apart(FLOWS)),
            Distance("down/up bytes", "{:.2f}", apart(DOWN_UP)),
            Distance("packets up", "{:.2f}", apart(UP_SHARE)),
            Distance("Mbit/s", "{:.2f}", apart(BIT_RATE)),
        ),
    ),
    Topic(
        "packets",
        "all packets of a label together",
        (
            Distance("gap KS", "{:.3f}", apart(gaps)),
            Measure("gap ms (median)", "{:,.2f}", lambda group: _times(1000, median(gaps)(group))),
            Distance("size JS", "{:.3f}", _js_sizes),
            Distance("size KS", "{:.3f}", apart(sizes)),
            Measure("size (mean)", "{:,.0f}", lambda group: float(sizes(group).mean())),
        ),
    ),
    Topic(
        "timing",
        "medians over sessions; gaps: quantiles over packets; burstiness, autocorrelation of log gaps at lag 1, "
        "silences longer than 0.5 s and the activity between them",
        (
            Measure("gap ms 10 %", "{:,.3g}", gap_quantile(0.1)),
            Measure("gap ms 90 %", "{:,.3g}", gap_quantile(0.9)),
            Measure("gap ms 99 %", "{:,.3g}", gap_quantile(0.99)),
            Measure("burstiness", "{:.2f}", median(of_long(burstiness, 3))),
            Measure("autocorrelation", "{:.2f}", median(of_long(autocorrelation, 4))),
            Measure("silences/min", "{:.1f}", median(of_long(silences_per_minute, 2))),
            Measure("silent share", "{:.0%}", median(of_long(off_share, 2))),
            Measure("active s", "{:.2f}", median(of_long(on_seconds, 2))),
            Distance("burstiness KS", "{:.2f}", apart(of_long(burstiness, 3))),
            Distance("silent share KS", "{:.2f}", apart(of_long(off_share, 2))),
        ),
    ),
    Topic(
        "long range",
        f"sessions of {2 * LATE:,} packets and more: what comes after their first {LATE:,}; phase change is the JS "
        "distance of signed sizes, before against after",
        (
            Measure("long sessions", "{:.0%}", lambda group: float(np.mean([s.packets >= 2 * LATE for s in group]))),
            Measure("phase change", "{:.2f}", median(of_long(phase_change, 2 * LATE))),
            Measure("up later", "{:.0%}", median(of_long(late_up, 2 * LATE))),
            Measure("size later", "{:,.0f}", median(of_long(late_size, 2 * LATE))),
            Measure("Mbit/s later", "{:,.2f}", median(of_long(late_rate, 2 * LATE))),
        ),
    ),
    Topic(
        "TCP flows",
        "shares of flows; endings in sessions that came to their own end; retransmissions and gaps in 1,000 packets",
        (
            Measure("SYN-started", "{:.3f}", flow_share("syn_started")),
            Measure("handshake", "{:.3f}", flow_share("handshake")),
            Measure("FIN both", "{:.2f}", ending_share("fin_both")),
            Measure("one FIN", "{:.2f}", ending_share("fin_one")),
            Measure("RST", "{:.2f}", ending_share("rst")),
            Measure("open", "{:.2f}", ending_share("open")),
            Measure("conflicting flags", "{:.3f}", flow_share("conflicting_flags")),
            Measure("ACK beyond sent", "{:.3f}", flow_share("ack_beyond_sent")),
            Measure("retransmissions", "{:.1f}", packet_rate("retransmission")),
            Measure("gaps", "{:.1f}", packet_rate("gap")),
        ),
    ),
    Topic(
        "round trips",
        "handshake: SYN to the ACK of SYN+ACK, beside the condition rtt_ms of the session",
        (
            Measure("ms (median)", "{:,.1f}", rtt_measured),
            Measure("measured/condition", "{:.2f}", rtt_ratio),
            Measure("factor off", "{:.2f}", rtt_off),
            Measure("rank correlation", "{:.2f}", rtt_rank),
        ),
    ),
)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else factor * value


@dataclass(frozen=True, slots=True)
class Cell:
    """A column's value of each set; for a distance, of each set from the real one. None where there is none."""

    form: str
    distance: bool
    real: float | None
    synthetic: float | None
    floor: float | None
    interval: Interval | None = None  # of the synthetic value

    def text(self) -> str:
        """`real / synthetic / floor`, or for a distance `synthetic (floor)`."""

        def one(value: float | None) -> str:
            return "-" if value is None else self.form.format(value)

        if self.distance:
            return f"{one(self.synthetic)} ({one(self.floor)})"
        return " / ".join((one(self.real), one(self.synthetic), one(self.floor)))


@dataclass(frozen=True, slots=True)
class Table:
    """A topic's cells: lines by label, the overall ones first; columns by name."""

    name: str
    note: str
    columns: tuple[str, ...]
    lines: dict[str, dict[str, Cell]]


Lines = dict[str, dict[str, Cell]]


def compare(
    real: Group, synthetic: Group, floor: Group = (), replicates: int = 0, seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[Table]:  # fmt: skip
    """One table a topic. Labels are those that real and synthetic have in common; `floor` may be empty. `replicates`:
    of the bootstrap, `advance` is called once for each."""
    groups = by_label(real), by_label(synthetic), by_label(floor)
    lines = {topic.name: _lines(topic, *groups) for topic in TOPICS}
    random = np.random.default_rng(seed)
    drawn: list[dict[str, Lines]] = []
    for _ in range(replicates):
        again = resample(groups[0], random), resample(groups[1], random)
        drawn.append({topic.name: _lines(topic, *again, {}) for topic in TOPICS})
        advance()
    for topic in TOPICS:
        for name, cells in lines[topic.name].items():
            for column, cell in cells.items():
                found = interval([replicate[topic.name][name][column].synthetic for replicate in drawn])
                cells[column] = replace(cell, interval=found)
    return [Table(topic.name, topic.note, tuple(c.name for c in topic.columns), lines[topic.name]) for topic in TOPICS]


def _lines(topic: Topic, reals: Groups, synthetics: Groups, floors: Groups) -> Lines:
    """The cells of a topic: overall lines first, then one a label."""
    labels = [label for label in reals if label in synthetics]
    lines = {
        label: {c.name: _cell(c, reals[label], synthetics[label], floors.get(label, [])) for c in topic.columns}
        for label in labels
    }
    return {**{name: _means(topic, lines, keep) for name, keep in _overall(labels).items()}, **lines}


def _cell(column: Measure | Distance, real: Group, synthetic: Group, floor: Group) -> Cell:
    if isinstance(column, Measure):
        return Cell(column.form, False, column.of(real), column.of(synthetic), column.of(floor) if floor else None)
    return Cell(
        column.form, True, None, column.between(real, synthetic), column.between(real, floor) if floor else None
    )


def _overall(labels: Sequence[str]) -> dict[str, list[str]]:
    benign = [label for label in labels if not label.startswith(ATTACK)]
    lines = {OVERALL: list(labels)} if len(labels) > 1 else {}
    return {**lines, BENIGN: benign} if 1 < len(benign) < len(labels) else lines


def _means(topic: Topic, lines: Lines, labels: Sequence[str]) -> dict[str, Cell]:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    means = {}
    for column in topic.columns:
        cells = [lines[label][column.name] for label in labels]
        means[column.name] = Cell(
            column.form,
            isinstance(column, Distance),
            mean([cell.real for cell in cells]),
            mean([cell.synthetic for cell in cells]),
            mean([cell.floor for cell in cells]),
        )
    return means
