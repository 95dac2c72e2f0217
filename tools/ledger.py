"""Write what is generated from the ledger's fields (netssmd/output/ledger_schema.py): the tables of docs/ledger.md
between its two marks, and docs/ledger.schema.json.

python tools/ledger.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from netssmd.output.ledger_schema import Line, tables  # noqa: E402

DOCUMENT = ROOT / "docs" / "ledger.md"
SCHEMA = ROOT / "docs" / "ledger.schema.json"
BEGIN, END = "<!-- fields: written by tools/ledger.py -->\n", "<!-- end of fields -->\n"


def document(text: str) -> str:
    """The document with its tables as they are now."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + tables() + END + rest.split(END)[1]


def schema() -> str:
    """JSON Schema of a line."""
    whole: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A line of a netssmd ledger",
        **msgspec.json.schema(Line),
    }  # fmt: skip
    return json.dumps(whole, indent=1) + "\n"


def main() -> None:
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    SCHEMA.write_text(schema())
    print(f"{DOCUMENT}\n{SCHEMA}")


if __name__ == "__main__":
    main()
