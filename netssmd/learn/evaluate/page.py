"""report.html: the verdict as one page that needs nothing but itself.

In: sheets and pictures. Out: HTML text. Headlines first, pictures next, every table behind its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from netssmd.learn.evaluate.report import Sheet

OPEN = ("headlines",)  # sheets that are not folded up
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #dfe3e8; --paper: #fff }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e9ef; --soft: #9aa4b2; --line: #333b47; --paper: #14181f }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem }}
h1 {{ font-size: 1.5rem; margin-bottom: .2rem }} h2 {{ font-size: 1.05rem; margin: 2rem 0 .4rem }}
p.note, figcaption {{ color: var(--soft); font-size: .85rem; margin: .2rem 0 .6rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .18rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; background: var(--paper) }}
th {{ color: var(--soft); font-weight: 600 }}
details {{ border-top: 1px solid var(--line); padding: .45rem 0 }} summary {{ cursor: pointer; font-weight: 600 }}
figure {{ background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: 1rem 0;
  overflow-x: auto }}
figure svg {{ max-width: 100%; height: auto }} figcaption {{ color: #475467; font-weight: 600 }}
</style></head><body>
"""


def table(sheet: Sheet) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in sheet.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in sheet.rows)
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    return f'{note}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def page(title: str, about: Sequence[str], sheets: Sequence[Sheet], pictures: Sequence[tuple[str, str]]) -> str:
    parts = [_HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="note">{escape(line)}</p>' for line in about]
    parts += [f"<h2>{escape(sheet.title)}</h2>{table(sheet)}" for sheet in sheets if sheet.title in OPEN]
    parts += [f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in pictures]
    parts.append("<h2>All tables</h2>")
    for sheet in sheets:
        if sheet.title not in OPEN:
            parts.append(f"<details><summary>{escape(sheet.title)}</summary>{table(sheet)}</details>")
    parts.append("</body></html>\n")
    return "\n".join(parts)
