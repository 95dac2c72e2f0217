"""The verdict in print: tables of text for a terminal, Markdown for a file, plain objects for JSON.

In: rows of cells that are already text, or what `compare` and `classify` return. Out: strings and dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from netssmd.learn.evaluate.compare import Table


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table: a title, what it means, a head, rows of text, and the same as data."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    data: Any = field(default_factory=dict)

    def text(self) -> str:
        """Columns aligned, the first to the left, the others to the right."""
        table = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.head))]
        lines = [self.title.upper(), f"  {self.note}"] if self.note else [self.title.upper()]
        for row in table:
            cells = [cell.rjust(width) for cell, width in zip(row, widths)]
            lines.append("  " + "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rule = "|" + "---|" + "---:|" * (len(self.head) - 1)
        note = [self.note, ""] if self.note else []
        return "\n".join([f"## {self.title}", "", *note, line(self.head), rule, *map(line, self.rows)])


def number(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None else form.format(value)


def of_table(table: Table) -> Sheet:
    """A topic of `compare`: a line a label, `real / synthetic / floor` or `distance (floor)` in each cell."""
    rows = [(name, *(cells[column].text() for column in table.columns)) for name, cells in table.lines.items()]
    data = {
        name: {
            column: {
                **({} if cell.distance else {"real": cell.real}), "synthetic": cell.synthetic, "floor": cell.floor,
                "interval": cell.interval,
            }
            for column, cell in cells.items()
        }
        for name, cells in table.lines.items()
    }  # fmt: skip
    how = "distance (floor)" if all(c.distance for cells in table.lines.values() for c in cells.values()) else (
        "real / synthetic / floor, distances as synthetic (floor)"
    )  # fmt: skip
    return Sheet(table.name, f"{how}; {table.note}", ("label", *table.columns), rows, data)


def text(sheets: Sequence[Sheet]) -> str:
    return "\n\n".join(sheet.text() for sheet in sheets)


def markdown(title: str, about: Sequence[str], sheets: Sequence[Sheet]) -> str:
    return "\n\n".join([f"# {title}", *about, *(sheet.markdown() for sheet in sheets)]) + "\n"


def as_object(about: dict[str, Any], sheets: Sequence[Sheet]) -> dict[str, Any]:
    return {**about, "topics": {sheet.title: sheet.data for sheet in sheets}}
