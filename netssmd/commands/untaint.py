"""`netssmd untaint`: a marked capture in, the same capture without the mark out.

In: a capture (PCAP or PCAPNG, also gzip or zstd) that was made with `[output] mark`. Out: a PCAP with nanoseconds,
packet for packet the same but for the mark, checksums right. It appears under its name only when it is whole.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from netssmd.errors import CaptureError, OutputError


@click.command
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT.pcap",
              help="Default: FILE-untainted.pcap beside it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, output: Path | None, as_json: bool) -> None:
    """Clear the provenance mark from a capture.

    Reserved IP bit and marked MACs are both recognized. A capture without any is refused.
    """
    import json

    target = output or file.with_name(f"{file.name.partition('.')[0]}-untainted.pcap")
    packets, marked = untaint(file, target)
    if as_json:
        click.echo(json.dumps({"file": str(target), "packets": packets, "marked": marked}))
    else:
        click.echo(f"{target}: {packets} packets, {marked} of them were marked")


def untaint(source: Path, target: Path) -> tuple[int, int]:
    """Write `target`. Return: packets, and how many had a mark. Raises CaptureError, OutputError; then nothing is
    left of it."""
    from netssmd.packet.mark import clear
    from netssmd.packet.pcap import Packet, PcapWriter, read_capture

    marked = 0
    try:
        capture = source.open("rb")
    except OSError as error:
        raise CaptureError(f"{source}: cannot be read: {error.strerror}") from None
    with capture:
        try:
            handle, work = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from None
        try:
            with os.fdopen(handle, "wb") as file:
                writer = PcapWriter(file)
                for ts_ns, data, orig_len in read_capture(capture, str(source)):
                    cleared = clear(data)
                    marked += cleared is not data
                    writer.write(Packet(ts_ns, cleared, orig_len))
                writer.flush()
                file.flush()
                os.fsync(file.fileno())
            if not marked:
                raise CaptureError(
                    f"{source}: no packet carries a mark of netssmd (reserved IP bit, MACs 06:4e:53); nothing to clear"
                )
            os.chmod(work, source.stat().st_mode & 0o777)
            os.replace(work, target)
        except OSError as error:
            raise OutputError(f"{target}: cannot be written: {error.strerror}") from None
        finally:
            if os.path.exists(work):
                os.unlink(work)
    return writer.packets, marked
