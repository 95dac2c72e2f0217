"""The tables and the first figure of the NetSSM paper as sheets: Tables 2 to 5, Figures 2, 5 and 6, and what was
remembered.

In: real, synthetic and floor sessions. Out: one `Sheet` each, real against real beside every score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from netssmd.learn.evaluate import fidelity, memorised, mixing, segments
from netssmd.learn.evaluate.report import Sheet, number
from netssmd.learn.evaluate.sessions import Session
from netssmd.packet.compliance import FINDINGS, OPTION_KINDS, Totals

Group = Sequence[Session]


def table2(real: Group, synthetic: Group, floor: Group) -> list[Sheet]:
    """A sheet for each reading of header values, and one for flow statistics."""
    flow = fidelity.FlowReading(real)
    readings: tuple[fidelity.Columns, ...] = (*fidelity.READINGS, flow)
    sheets = []
    for reading in readings:
        packets = reading is not flow
        scores = {
            "synthetic": fidelity.compared(reading.shares, real, synthetic),
            "real against real (floor)": fidelity.compared(reading.shares, real, floor),
            f"random {'packets' if packets else 'flow statistics'}": fidelity.compared(
                reading.shares, real, None, reading.random
            ),
        }
        if packets:
            scores |= {
                f"{name}, all labels together": fidelity.compared(reading.shares, real, some, together=True)
                for name, some in (("synthetic", synthetic), ("real against real (floor)", floor))
            }
        values = {name: None if found is None else [float(x) for x in found] for name, found in scores.items()}
        published = fidelity.PUBLISHED if packets and reading.name == "table 2: TCP by byte" else {}
        rows = [
            (name, *(number(x, "{:.3f}") for x in line or [None] * len(fidelity.MEASURES)))
            for name, line in {**values, **{name: list(line) for name, line in published.items()}}.items()
        ]
        note = (
            f"distance of {'header values, first 1,024 packets of a capture' if packets else 'flows'}, mean over "
            "columns, then over labels"
        )
        sheets.append(Sheet(reading.name, note, ("", *fidelity.MEASURES), rows, {**values, "n": len(synthetic)}))
    return sheets


def total(sessions: Group) -> Totals:
    totals = Totals()
    for session in sessions:
        totals.add(session.tcp)
    return totals


def table3(real: Group, synthetic: Group, floor: Group) -> Sheet:
    """Findings of the checker: shares of captures, as the paper counts, and of flows."""
    sums = {"synthetic": total(synthetic), "real": total(real), "floor": total(floor)}
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for i, finding in enumerate(FINDINGS):
        captures = {name: t.in_captures[i] / t.captures if t.captures else None for name, t in sums.items()}
        flows = {name: t.in_flows[i] / t.flows if t.flows and finding.by_flow else None for name, t in sums.items()}
        data[finding.name] = {"paper": finding.paper, "captures": captures, "flows": flows}
        shown = [number(value, "{:.3f}") for shares in (captures, flows) for value in shares.values()]
        rows.append((finding.name, finding.paper or "-", *shown))
    head = ("finding", "the paper's row", *(f"{of}, {name}" for of in ("captures", "flows") for name in sums))
    note = "share of captures in which any flow has it (the paper's way) and of TCP flows; " + ", ".join(
        f"{name}: {t.captures:,} captures, {t.flows:,} flows" for name, t in sums.items()
    )
    return Sheet("table 3: session compliance", note, head, rows, data)


def table4(real: Group, synthetic: Group, floor: Group) -> Sheet:
    sums = {"synthetic": total(synthetic), "real": total(real), "floor": total(floor)}
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for kind, name in OPTION_KINDS.items():
        counts = {who: t.options[kind] for who, t in sums.items()}
        rates = {who: 1000 * t.options[kind] / t.tcp_packets if t.tcp_packets else None for who, t in sums.items()}
        data[name] = {"packets": counts, "per_1000": rates}
        rows.append((name, *(f"{n:,}" for n in counts.values()), *(number(r, "{:.1f}") for r in rates.values())))
    head = ("option", *sums, *(f"in 1,000, {who}" for who in sums))
    return Sheet("table 4: TCP options", "packets that carry the option, and of 1,000 TCP packets", head, rows, data)


def table5(real: Group, synthetic: Group, floor: Group, seed: int) -> Sheet:
    """Downloaded segments by sender."""
    found = {
        "synthetic": segments.table(real, synthetic, seed),
        "real against real (floor)": segments.table(real, floor, seed) if floor else {},
        "random, skewed to the right": segments.table(real, None, seed),
    }
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    for kind in segments.KINDS:
        for name, tables in found.items():
            if kind in tables:
                n, line = tables[kind]
                data.setdefault(kind, {})[name] = {"pairs": n, **dict(zip(segments.COLUMNS, map(float, line)))}
                rows.append((f"{kind}: {name}", str(n), *(f"{value:.3g}" for value in line)))
    note = (
        "medians over pairs of captures of one label; p of Anderson-Darling by permutation, "
        f"KL on {segments.KL_BINS} logarithmic bins"
    )
    return Sheet("table 5: downloaded segments", note, ("", "pairs", *segments.COLUMNS), rows, data)


def figure2(
    real: Group, synthetic: Group, floor: Group, seed: int, advance: Callable[[], None], models: Sequence[str]
) -> tuple[Sheet, list[mixing.Curve]]:
    """Accuracies by share of synthetic sessions. At 0 % it is the floor: trained on real ones alone."""
    curves = mixing.curves(floor, real, synthetic, seed, advance, models)
    head = ("trained on real and synthetic", "tested on", "n", "chance", *(f"{share} %" for share in mixing.SHARES))
    rows = [
        (
            f"{c.level}, {c.model}, {c.variant}", c.test, str(c.tested), f"{c.chance:.2f}",
            *(f"{a:.2f}" for a in c.accuracies),
        )
        for c in curves
    ]  # fmt: skip
    note = (
        f"nPrint bits of {mixing.PACKETS} packets, accuracy by share of synthetic sessions in the training set; 0 % is "
        "the floor (real alone)"
    )
    return Sheet("figures 2, 5, 6: mixing real and synthetic", note, head, rows, [asdict(c) for c in curves]), curves


def memory_sheet(real: Group, synthetic: Group, floor: Group) -> Sheet:
    """What is found again in the training set (the floor's captures)."""
    rows: list[tuple[str, ...]] = []
    data: dict[str, Any] = {}
    if floor:
        memory = memorised.Memory.of(floor)
        ours, theirs = memory.shares(synthetic), memory.shares(real)
        for kind in memorised.KINDS:
            data[kind] = {"synthetic": ours[kind], "floor": theirs[kind]}
            shown = [text for n, share in (ours[kind], theirs[kind]) for text in (f"{n:,}", number(share, "{:.4f}"))]
            rows.append((kind, *shown, "-"))
        ours_known, theirs_known = memory.identifiers_of(synthetic), memory.identifiers_of(real)
        for name, (n, known, chance) in ours_known.items():
            count, again, _ = theirs_known[name]
            data[name] = {"synthetic": [n, known], "floor": [count, again], "by chance": chance}
            rows.append((f"{name} (how many)", f"{n:,}", str(known), f"{count:,}", str(again), f"{chance:.2f}"))
    note = (
        f"found word for word in the training set: {memorised.RUN} packets in a row, flows of {memorised.FLOW_PACKETS} "
        "packets and more, identifiers; beside it held-out real captures (floor), which repeat it as well"
    )
    head = ("", "synthetic", "found again", "real", "found again", "by chance")
    return Sheet("remembered", note, head, rows, data)
