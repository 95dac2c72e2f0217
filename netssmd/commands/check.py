"""`netssmd check`: does a capture keep the rules of TCP/IP?

In: capture files. Out: one line a capture, a table of findings (packets that raise them, flows and captures that have
them) and the option counts; with --flows one line a flow; with --json one object. Exit code 1 when a file could not be
read to its end; what came before the damage is counted. A thin shell around `packet/compliance`, whose rows it prints.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netssmd.errors import CaptureError

if TYPE_CHECKING:
    from netssmd.packet.compliance import Flow, Totals


@click.command("check")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--paper", is_flag=True, help="The paper's reading (payload is what was captured) and tables.")
@click.option("--flows", "by_flow", is_flag=True, help="Each flow too: addresses, packets, ending, findings.")
def command(files: tuple[Path, ...], as_json: bool, paper: bool, by_flow: bool) -> int:
    """Check captures against the rules of TCP/IP: findings by capture and by flow."""
    from netssmd.packet.compliance import Totals

    total = Totals()
    captures: list[dict[str, Any]] = []
    for path in files:
        ended: list[Flow] = []
        one, error = check_file(path, paper, ended.append if by_flow else None)
        flows = [flow_line(flow) for flow in ended]
        more = {"flow_list": flows} if by_flow else {}
        captures.append({"file": str(path), "error": error, **as_object(one), **more})
        if error:
            click.echo(f"netssmd: {error}", err=True)
        if error and not one.packets:
            continue
        total.add(one)
        if not as_json:
            click.echo(capture_line(path, one))
            for line in flows:
                click.echo(f"    {line}")
    if as_json:
        click.echo(json.dumps({"paper": paper, "total": as_object(total), "captures": captures}))
    else:
        click.echo("")
        click.echo(paper_tables(total) if paper else findings_table(total))
    return 1 if any(capture["error"] for capture in captures) else 0


def check_file(path: Path, paper: bool, on_flow: "Callable[[Flow], None] | None" = None) -> "tuple[Totals, str]":
    """Check one capture. Return: its counts, and why it could not be read to its end ("" if it could)."""
    from netssmd.packet.compliance import Checker
    from netssmd.packet.pcap import read_capture

    checker = Checker(captured_lengths=paper, on_flow=on_flow)
    error = ""
    try:
        with path.open("rb") as file:
            for ts_ns, data, orig_len in read_capture(file, str(path)):
                checker.observe_bytes(ts_ns, data, orig_len)
    except CaptureError as problem:
        error = str(problem)
    except OSError as problem:
        error = f"{path}: {problem.strerror}; name a capture file that can be read"
    return checker.finish(), error


def as_object(totals: "Totals") -> dict[str, Any]:
    from netssmd.packet.compliance import FINDINGS, OPTION_KINDS

    return {
        "captures": totals.captures,
        "packets": totals.packets,
        "tcp_packets": totals.tcp_packets,
        "flows": totals.flows,
        "endings": totals.endings,
        "options": {name: totals.options[kind] for kind, name in OPTION_KINDS.items()},
        "findings": {
            finding.name: {
                **({} if finding.flow else {"packets": totals.in_packets[i]}),
                **({"flows": totals.in_flows[i]} if finding.by_flow else {}),
                "captures": totals.in_captures[i],
            }
            for i, finding in enumerate(FINDINGS)
        },
    }


def capture_line(path: Path, totals: "Totals") -> str:
    """One capture: its size, how many flows shook hands, and the defects in it."""
    from netssmd.packet.compliance import FINDINGS, INDEX

    defects = [
        f"{finding.name} {totals.in_packets[i]}"
        for i, finding in enumerate(FINDINGS)
        if not finding.good and totals.in_packets[i]
    ]
    handshakes = f"{totals.in_flows[INDEX['handshake']]:,}/{totals.flows:,} handshakes"
    return f"{path}: {totals.packets:,} packets, {handshakes}, {', '.join(defects) or 'no defect'}"


def flow_line(flow: "Flow") -> str:
    from netssmd.packet.compliance import FINDINGS

    def end(address: bytes, port: int) -> str:
        import ipaddress

        text = str(ipaddress.ip_address(address))
        return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"

    source, sport, destination, dport = flow.key
    good = {finding.name for finding in FINDINGS if finding.good}
    found = [name if name in good else name.upper() for name in flow.found()]
    packets = f"{flow.originator.packets}/{flow.responder.packets} packets"
    return f"{end(source, sport)} > {end(destination, dport)}  {packets}  {flow.ending()}  {' '.join(found)}"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def findings_table(totals: "Totals") -> str:
    from netssmd.packet.compliance import FINDINGS, OPTION_KINDS

    lines = [
        f"{totals.captures:,} captures, {totals.packets:,} packets, {totals.tcp_packets:,} TCP, {totals.flows:,} flows",
        f"  {'':<26}{'packets':>12}{'flows':>12}{'':>9}{'captures':>10}{'':>9}",
    ]
    for title, good in (("to have", True), ("deviations", False)):
        lines.append(title)
        for i, finding in enumerate(FINDINGS):
            if finding.good != good:
                continue
            packets = "" if finding.flow else f"{totals.in_packets[i]:,}"
            flows = "" if not finding.by_flow else f"{totals.in_flows[i]:,}"
            part = "" if not finding.by_flow else share(totals.in_flows[i], totals.flows)
            captures = f"{totals.in_captures[i]:,}"
            part_of_captures = share(totals.in_captures[i], totals.captures)
            lines.append(f"  {finding.name:<26}{packets:>12}{flows:>12}{part:>9}{captures:>10}{part_of_captures:>9}")
    lines.append("endings")
    for ending, count in totals.endings.items():
        lines.append(f"  {ending:<26}{'':>12}{count:>12,}{share(count, totals.flows):>9}")
    lines.append("options")
    for kind, name in OPTION_KINDS.items():
        count = totals.options[kind]
        rate = 1000 * count / max(totals.tcp_packets, 1)
        lines.append(f"  {name:<26}{count:>12,}{rate:>12.1f} per 1,000 TCP packets")
    return "\n".join(lines)


def paper_tables(totals: "Totals") -> str:
    """Tables 3 and 4 in the paper's rows: the share of captures in which any flow has it, and option counts."""
    from netssmd.packet.compliance import FINDINGS, OPTION_KINDS

    rows = [(finding, totals.in_captures[i], totals.in_flows[i]) for i, finding in enumerate(FINDINGS) if finding.paper]
    table_a = [row for row in rows if row[0].good or row[0].frame]
    table_b = [row for row in rows if row not in table_a]
    lines: list[str] = []
    for title, table in (("Table 3 (a), correct behaviour", table_a), ("Table 3 (b), deviations", table_b)):
        lines.append(f"{title:<36}{f'PCAPs (N={totals.captures:,})':>18}{f'flows (N={totals.flows:,})':>20}")
        for finding, captures, flows in table:
            if finding.frame:  # the paper counts the captures that are right
                captures = totals.captures - captures
            of_flows = "" if finding.frame else share(flows, totals.flows)
            lines.append(f"  {finding.paper:<34}{share(captures, totals.captures):>18}{of_flows:>20}")
    lines.append(f"{'Table 4, options':<36}{'packets':>18}{'per 1,000 TCP':>20}")
    for kind, name in OPTION_KINDS.items():
        count = totals.options[kind]
        lines.append(f"  {name:<34}{count:>18,}{1000 * count / max(totals.tcp_packets, 1):>20.1f}")
    return "\n".join(lines)
