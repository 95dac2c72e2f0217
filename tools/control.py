"""Write the tables of docs/control.md from those of the code: python tools/control.py"""

from pathlib import Path

from netssmd.daemon.control import COMMANDS, Argument
from netssmd.daemon.events import EVENTS

DOCUMENT = Path(__file__).parent.parent / "docs" / "control.md"


def argument(row: Argument) -> str:
    default = "required" if row.required else f"default {row.default}" if row.default else ""
    return f"`{row.name}` ({', '.join(filter(None, (row.kind.shown, default)))}): {row.help}"


def tables() -> dict[str, str]:
    """By marker."""
    commands = ["| command | | arguments |", "|---|---|---|"]
    for row in COMMANDS:
        commands.append(f"| `{row.name}` | {row.help} | {'<br>'.join(map(argument, row.arguments))} |")
    events = ["| event | fields |", "|---|---|", *(f"| `{kind}` | {fields} |" for kind, fields in EVENTS.items())]
    return {"commands": "\n".join(commands), "events": "\n".join(events)}


def filled(text: str) -> str:
    """The document with its tables as the code has them."""
    for name, table in tables().items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return text


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
