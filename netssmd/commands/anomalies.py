"""`--anomaly DEFECT=SHARE` of `netssmd generate`: what the daemon's [compliance.anomalies] says, on a command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from netssmd.errors import UsageError


def chosen_anomalies(given: Sequence[str]) -> dict[str, float]:
    """Defects and the shares of the packets that can have them. Raises UsageError naming what is wrong."""
    from netssmd.packet.mutants import LIVE, no_such_defect

    rates: dict[str, float] = {}
    for text in given:
        name, _, share = text.partition("=")
        if name not in LIVE:
            raise UsageError(f"--anomaly {text}: {no_such_defect(name)}")
        try:
            rates[name] = float(share)
        except ValueError:
            raise UsageError(f"--anomaly {text}: write the share of packets that get it, as {name}=0.001") from None
        if not 0 <= rates[name] <= 1:
            raise UsageError(f"--anomaly {text}: a share of packets lies between 0 and 1")
    return rates


def planted_line(counts: Mapping[str, int]) -> str:
    """What was planted, for the closing lines."""
    return f"Planted: {', '.join(f'{name} {count}' for name, count in sorted(counts.items())) or 'nothing'}"
