"""The pictures of the report, as SVG text that stands in the page itself.

In: sessions and what was computed of them. Out: (title, SVG) pairs. Real is blue, synthetic orange, the floor grey,
everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from netssmd.learn.evaluate import compare, mixing, segments
from netssmd.learn.evaluate.report import Sheet
from netssmd.learn.evaluate.sessions import Session, by_label

Group = Sequence[Session]
COLOURS = {"real": "#2a6fbb", "synthetic": "#e8782a", "floor": "#9aa0a6"}
POINTS = 200  # of a curve
STYLE = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8, "svg.fonttype": "none",
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "figure.constrained_layout.use": True,
    "svg.hashsalt": "netssmd",
}  # fmt: skip


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def svg(figure: Any) -> str:
    """The picture's markup, without the XML head."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    pyplot().close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :]


def ecdf(values: Any) -> tuple[Any, Any]:
    """POINTS quantiles and their ranks."""
    ranks = np.linspace(0, 1, POINTS)
    return np.quantile(values, ranks), ranks


def draw(
    real: Group, synthetic: Group, floor: Group, sheets: Sequence[Sheet], curves: Sequence[mixing.Curve]
) -> Iterator[tuple[str, str]]:
    """All pictures for which there is something to show."""
    plt = pyplot()
    sets = {"real": real, "floor": floor, "synthetic": synthetic}
    with plt.rc_context(STYLE):
        if curves:
            yield "Figure 2: classifiers trained on mixtures of real and synthetic sessions", svg(_mixing(plt, curves))
        yield "Table 2: distance of header values (TCP, by byte)", svg(_table2(plt, sheets))
        yield (
            "Gaps between packets, by label",
            svg(_by_label(plt, sets, lambda group: compare.gaps(group) * 1e3 + 1e-3, "ms", True)),
        )
        yield "Sizes of packets, by label", svg(_by_label(plt, sets, compare.sizes, "bytes", False))
        yield "Packets and seconds of sessions", svg(_sessions(plt, sets))
        yield "How TCP flows end", svg(_endings(plt, sets))
        if picture := _segments(plt, sets):
            yield "Figures 3, 4, 7-10: downloaded segments by sender", svg(picture)


def _mixing(plt: Any, curves: Sequence[mixing.Curve]) -> Any:
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, sharey=True)
    for row, level in zip(axes, ("label", "category")):
        for axis, test in zip(row, ("real", "synthetic")):
            for curve in curves:
                if (curve.level, curve.test) == (level, test):
                    plain = curve.variant == "all columns"
                    name = curve.model if plain else f"{curve.model}, {curve.variant}"
                    axis.plot(mixing.SHARES, curve.accuracies, "o-" if plain else "--", ms=3, lw=1.2, label=name)
                    axis.axhline(curve.chance, color="black", lw=0.6, ls=":")
            axis.set_title(f"{level}, tested on {test}")
            axis.set_ylim(0, 1.02)
    axes[1][0].set_xlabel("synthetic sessions in the training set, %")
    axes[1][1].set_xlabel("synthetic sessions in the training set, %")
    axes[0][0].set_ylabel("accuracy")
    axes[1][0].set_ylabel("accuracy")
    axes[0][0].legend(fontsize=7, loc="lower left")
    return figure


def _table2(plt: Any, sheets: Sequence[Sheet]) -> Any:
    sheet = next(sheet for sheet in sheets if sheet.title == "table 2: TCP by byte")
    rows = [(row[0], float(row[1])) for row in sheet.rows if row[1] != "-"]
    figure, axis = plt.subplots(figsize=(9, 0.32 * len(rows) + 0.8))
    colours = [COLOURS["synthetic"], COLOURS["floor"], *["#c9ccd1"] * len(rows)]
    axis.barh([name for name, _ in rows][::-1], [value for _, value in rows][::-1], color=colours[: len(rows)][::-1])
    for at, (_, value) in enumerate(rows[::-1]):
        axis.text(value + 0.005, at, f"{value:.3f}", va="center")
    axis.set_xlabel("Jensen-Shannon distance, less is nearer")
    return figure


def _by_label(plt: Any, sets: dict[str, Group], values: Callable[[Group], Any], unit: str, log: bool) -> Any:
    groups = {name: by_label(some) for name, some in sets.items()}
    labels = [label for label in groups["real"] if label in groups["synthetic"]]
    across = min(6, len(labels))
    down = -(-len(labels) // across)
    figure, axes = plt.subplots(down, across, figsize=(1.9 * across, 1.45 * down + 0.4), sharey=True, squeeze=False)
    for axis, label in zip(axes.flat, labels):
        for name, colour in COLOURS.items():
            if label in groups[name]:
                sample = values(groups[name][label])
                if len(sample):
                    axis.plot(*ecdf(sample), color=colour, lw=1.2, label=name)
        axis.set_title(label)
        if log:
            axis.set_xscale("log")
        axis.tick_params(labelsize=6)
    for axis in list(axes.flat)[len(labels) :]:
        axis.set_axis_off()
    axes[0][0].legend(fontsize=6)
    figure.supxlabel(unit)
    figure.supylabel("share of packets up to it")
    return figure


def _sessions(plt: Any, sets: dict[str, Group]) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True, sharey=True)
    for axis, name in zip(axes, ("real", "synthetic")):
        for label, group in by_label(sets[name]).items():
            seconds = [max(session.duration_seconds, 1e-3) for session in group]
            axis.scatter(seconds, [session.packets for session in group], s=6, alpha=0.7, label=label)
        axis.set_title(name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("seconds")
    axes[0].set_ylabel("packets")
    axes[1].legend(fontsize=5, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _endings(plt: Any, sets: dict[str, Group]) -> Any:
    endings = {"fin_both": "#2f9e5f", "fin_one": "#b9d8a6", "rst": "#d9534f", "open": "#c9ccd1"}
    labels = list(by_label(sets["real"]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.16 * len(labels) + 1), sharey=True)
    for axis, name in zip(axes, ("real", "synthetic")):
        groups = by_label(sets[name])
        left = np.zeros(len(labels))
        for ending, colour in endings.items():
            shares = np.array([_ending(groups.get(label, []), ending) for label in labels])
            axis.barh(labels, shares, left=left, color=colour, label=ending)
            left += shares
        axis.set_title(name)
        axis.tick_params(labelsize=6)
        axis.set_xlabel("share of TCP flows")
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _ending(group: Group, ending: str) -> float:
    flows = sum(session.tcp.flows for session in group)
    return sum(session.tcp.endings[ending] for session in group) / flows if flows else 0.0


def _segments(plt: Any, sets: dict[str, Group]) -> Any | None:
    from scipy import stats

    found = {name: [segments.segments(session) for session in some] for name, some in sets.items()}
    kinds = ((segments.KINDS[1], "kB"), (segments.KINDS[2], "segments a sender"))
    figure, axes = plt.subplots(2, 2, figsize=(9, 5))
    drawn = 0
    for row, (kind, unit) in zip(axes, kinds):
        for name, colour in COLOURS.items():
            parts = [part.of(kind) for part in found[name]]
            values = np.concatenate(parts) if parts else np.zeros(0)
            logs = np.log10(np.maximum(values, 1e-3))
            if len(values) < 3 or np.ptp(logs) == 0:
                continue
            drawn += 1
            at = np.linspace(logs.min(), logs.max(), POINTS)
            row[0].plot(at, stats.gaussian_kde(logs, "scott")(at), color=colour, label=name)
            row[1].plot(*ecdf(values), color=colour, label=name)
        row[0].set_xlabel(f"log10 {unit}")
        row[0].set_ylabel("density (Scott)")
        row[1].set_xscale("log")
        row[1].set_xlabel(unit)
        row[1].set_ylabel("share")
    axes[0][0].legend()
    if not drawn:
        plt.close(figure)
        return None
    return figure
