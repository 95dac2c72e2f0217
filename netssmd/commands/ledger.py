"""`netssmd ledger`: ground truth as other tools read it.

In: a ledger, or a folder of them. Out: a table of flows as CSV, Zeek's conn.log or CICFlowMeter's columns, with labels.
Files are read line by line, so a folder may be larger than memory; a flow that goes over several slices is one row.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from netssmd.errors import OutputError

FORMATS = ("csv", "conn.log", "cicflow")


@click.command("ledger")
@click.argument("path", type=click.Path(path_type=Path), metavar="FILE.jsonl|DIR")
@click.option("--to", "format_", type=click.Choice(FORMATS), default="csv", show_default=True,
              help="csv: all fields; conn.log: Zeek's; cicflow: CICFlowMeter's columns.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: stdout.")
def command(path: Path, format_: str, output: Path | None) -> None:
    """Turn ledgers into a table of labelled flows."""
    from netssmd.output.flow_tables import FORMATS as WRITERS
    from netssmd.output.ledger_reader import Reading, connections, ledgers

    files, reading = ledgers(path), Reading()
    found = connections(files, reading)
    if output is None or str(output) == "-":
        WRITERS[format_](found, sys.stdout)
    else:
        part = output.with_name(f".{output.name}.part")
        try:
            with open(part, "w", encoding="utf-8", newline="") as out:
                WRITERS[format_](found, out)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, output)
        except OSError as error:
            raise OutputError(f"{output}: cannot be written: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
    many = "s" * (len(files) != 1)
    click.echo(f"{reading.connections} flows of {len(files)} ledger{many}", err=True)
    if reading.omitted_packets:
        click.echo(f"{reading.omitted_packets} packets are of flows beyond what a ledger tells one by one", err=True)
    for capture in reading.recovered:
        click.echo(f"{capture} was recovered after a kill: its flows are not known", err=True)
