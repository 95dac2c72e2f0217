"""Draw generated sessions beside real ones: bytes over time, and size and gap of every packet.

    python tools/picture.py REAL SYNTHETIC -o docs/images/generated.png [--labels web,dns,...] [--split val]
    python tools/picture.py FILE.pcap -o FILE.png

In: two folders of captures shaped like a training set (`netssmd generate -o DIR/` makes one), or one capture. Out: a
PNG. For each label two panels, real (left) and generated (right), share their axes: above, the cumulative bytes from
the responders (down) and from the originators (up); below, each packet's size and the time since the one before it. The
session drawn is, in either set, the one with the median number of packets, so nobody chose it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from netssmd.errors import NetssmdError
from netssmd.learn.evaluate.sessions import Session, by_label, find, load
from netssmd.learn.prepare import Source

LABELS = ("video-dash", "call-webrtc", "web", "download", "dns", "attack-synscan")
DOWN, UP = "#1f6f8b", "#d1603d"
SMALLEST_GAP = 1e-6  # seconds; captures tell no less
DOTS = 1500  # a panel; more of them only cover each other


def middle(sessions: Sequence[Session]) -> Session:
    """The session with the median number of packets (the lower one of two)."""
    packets = statistics.median_low([session.packets for session in sessions])
    return next(session for session in sessions if session.packets == packets)


def draw_bytes(axes: Any, session: Session) -> None:
    """Cumulative bytes on the wire, one line for each direction."""
    seconds = session.times_ns / 1e9
    for name, chosen, colour in (("down", ~session.up, DOWN), ("up", session.up, UP)):
        total = np.cumsum(np.where(chosen, session.sizes, 0)) / 1e6
        axes.step(seconds, total, where="post", color=colour, lw=1.2, label=name)
    axes.set_ylabel("MB", fontsize=7)
    axes.tick_params(labelsize=6)


def draw_packets(axes: Any, session: Session) -> None:
    """Every packet: the time since the one before it, and its size."""
    gaps = np.maximum(np.diff(session.times_ns) / 1e9, SMALLEST_GAP)
    sizes, up = session.sizes[1:], session.up[1:]
    kept = np.linspace(0, len(gaps) - 1, min(len(gaps), DOTS)).astype(int)
    for chosen, colour in ((~up[kept], DOWN), (up[kept], UP)):
        axes.plot(gaps[kept][chosen], sizes[kept][chosen], ".", ms=1.8, color=colour, alpha=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel("bytes", fontsize=7)
    axes.tick_params(labelsize=6)


def picture(rows: Sequence[tuple[str, Sequence[tuple[str, Session]]]], path: Path) -> None:
    """Arguments: for each label what to draw side by side, as (title, session); path: the PNG."""
    sets = max(len(sides) for _, sides in rows)
    columns = min(len(rows), 2 if sets > 1 else 1)
    lines = -(-len(rows) // columns)
    figure = plt.figure(figsize=(5.2 * columns, 2.7 * lines), layout="constrained")
    for at, (label, sides) in enumerate(rows):
        if at == 0:
            grid = figure.add_gridspec(2 * lines, sets * columns)
        line, column = 2 * (at // columns), sets * (at % columns)
        above = below = None
        for side, (title, session) in enumerate(sides):
            above = figure.add_subplot(grid[line, column + side], sharex=above, sharey=above)
            below = figure.add_subplot(grid[line + 1, column + side], sharex=below, sharey=below)
            draw_bytes(above, session)
            draw_packets(below, session)
            above.set_title(f"{label}, {title}: {session.packets:,} packets", fontsize=7)
            above.set_xlabel("s", fontsize=6, labelpad=0)
            below.set_xlabel("s since the packet before", fontsize=6, labelpad=0)
    figure.axes[0].legend(fontsize=6, loc="upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, pil_kwargs={"optimize": True})
    print(f"{path}: {path.stat().st_size:,} bytes, {', '.join(label for label, _ in rows)}")


def complain(text: str) -> None:
    print(f"picture: {text}", file=sys.stderr)


def sessions_of(folder: Path, split: str | None, labels: Sequence[str], most: int) -> dict[str, list[Session]]:
    return by_label(load(find(folder, split, labels, most), lambda: None, complain))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="+", type=Path, metavar="REAL SYNTHETIC | FILE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--labels", default=",".join(LABELS), help="six of them make a page; default: %(default)s")
    parser.add_argument("--split", default="val", help="of REAL; 'all' for every capture; default: %(default)s")
    parser.add_argument("--most", type=int, default=10, help="sessions of a label that are looked at; default: 10")
    arguments = parser.parse_args()
    try:
        if len(arguments.captures) == 1:
            path = arguments.captures[0]
            sessions = load([Source(path, path.name, path.stem, "all")], lambda: None, complain)
            rows = [(session.label, [("capture", session)]) for session in sessions]
        else:
            labels = arguments.labels.split(",")
            split = None if arguments.split == "all" else arguments.split
            real, synthetic = arguments.captures[:2]
            sets = [
                sessions_of(real, split, labels, arguments.most),
                sessions_of(synthetic, None, labels, arguments.most),
            ]
            common = [label for label in labels if all(label in some for some in sets)]
            titles = ("real", "generated")
            rows = [
                (label, [(title, middle(some[label])) for title, some in zip(titles, sets, strict=True)])
                for label in common
            ]
    except NetssmdError as error:
        complain(str(error))
        return error.exit_code
    if not rows:
        complain("no label with sessions in both folders")
        return 1
    picture(rows, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
