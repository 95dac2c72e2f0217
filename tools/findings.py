"""Write the table of findings in docs/compliance.md from the rows of packet/compliance.py; a test holds them equal.

python tools/findings.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from netssmd.packet.compliance import FINDINGS, Finding  # noqa: E402

DOCUMENT = ROOT / "docs" / "compliance.md"
BEGIN, END = "<!-- findings: written by tools/findings.py -->\n", "<!-- end of findings -->\n"


def table() -> str:
    """The rows, those to have first."""
    lines = ["| finding | what it is | counted by | RFC | known as | the paper's row |", "|---|---|---|---|---|---|"]
    for good in (True, False):
        lines.append(f"| **{'to have' if good else 'deviations'}** | | | | | |")
        lines += [row(finding) for finding in FINDINGS if finding.good == good]
    return "\n".join(lines) + "\n"


def row(finding: Finding) -> str:
    by = "flow" if finding.flow else "packet, flow" if finding.packet else "packet"
    cells = (f"`{finding.name}`", finding.definition, by, finding.rfc, finding.known_as, finding.paper)
    return f"| {' | '.join(cells)} |"


def document(text: str) -> str:
    """The document with the table of today."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    print(DOCUMENT)
