"""Write monitoring/grafana-dashboard.json from the table of panels below.

python tools/dashboard.py

One row of PANELS is a panel: its title, what it draws, its unit, and its queries with their legends. Queries take the
instance from the dashboard's variable. `rare`: metrics that a daemon has only where it is so configured; a test runs
all others against a real daemon and wants data.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "monitoring" / "grafana-dashboard.json"

ONE = '{instance=~"$instance"}'
RATE = ONE + "[$__rate_interval]"


@dataclass(frozen=True)
class Panel:
    """kind: stat, timeseries or table; unit: Grafana's name of it; width in 24ths."""

    title: str
    kind: str
    unit: str
    queries: tuple[tuple[str, str], ...]  # PromQL, legend
    width: int = 8
    height: int = 8
    rare: bool = False
    stack: bool = False


def each(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


def per_second(metric: str, by: str = "instance") -> tuple[str, str]:
    return f"sum by ({by}) (rate({metric}{RATE}))", each(by)


def gauge(metric: str, what: str = "") -> tuple[str, str]:
    return f"{metric}{ONE}", f"{what} {{{{instance}}}}".strip()


def quantile(q: float, metric: str, by: str = "instance") -> tuple[str, str]:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{RATE})))", f"{100 * q:g} % {each(by)}"


PANELS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Up", "stat", "none", (('up{job="netssmd",instance=~"$instance"}', "{{instance}}"),), 3, 4),
        Panel("Packets", "stat", "pps", (per_second("netssmd_packets_total"),), 3, 4),
        Panel("Rate", "stat", "bps",
              ((f"8 * sum by (instance) (rate(netssmd_bytes_total{RATE}))", "{{instance}}"),), 3, 4),
        Panel("Sessions", "stat", "none",
              ((f"sum by (instance) (netssmd_sessions_active{ONE})", each("instance")),), 3, 4),
        Panel("Paused", "stat", "bool_yes_no", ((f"netssmd_paused{ONE}", "{{instance}}"),), 3, 4),
        Panel("Up since", "stat", "dateTimeFromNow",
              (('1000 * process_start_time_seconds{job="netssmd",instance=~"$instance"}', "{{instance}}"),), 3, 4),
        Panel("Build", "table", "none", ((f"netssmd_build_info{ONE}", ""),), 6, 4),
    ),
    "Traffic": (
        Panel("Packets by label", "timeseries", "pps",
              (per_second("netssmd_packets_total", "label"),), 12, stack=True),
        Panel("Bits by label", "timeseries", "bps",
              ((f"8 * sum by (label) (rate(netssmd_bytes_total{RATE}))", "{{label}}"),), 12, stack=True),
        Panel("Live sessions by label", "timeseries", "none",
              ((f"sum by (label) (netssmd_sessions_active{ONE})", "{{label}}"),), stack=True),
        Panel("Sessions ended", "timeseries", "cps",
              (per_second("netssmd_sessions_ended_total", "reason"),), stack=True),
        Panel("Flows opened by label", "timeseries", "cps",
              (per_second("netssmd_flows_opened_total", "label"),), stack=True),
    ),
    "Does it keep up?": (
        Panel("Deficit a session", "timeseries", "percentunit",
              ((f"rate(netssmd_deficit_seconds_total{RATE}) / on (instance) "
                f"clamp_min(sum by (instance) (netssmd_sessions_active{ONE}), 1)", "{{instance}}"),)),
        Panel("Late packets", "timeseries", "pps", (per_second("netssmd_late_packets_total"),)),
        Panel("Lateness and look-ahead", "timeseries", "s",
              (gauge("netssmd_lateness_seconds", "late"),
               gauge("netssmd_lookahead_seconds", "ahead"))),
        Panel("Step time", "timeseries", "s",
              (quantile(0.5, "netssmd_step_seconds"), quantile(0.99, "netssmd_step_seconds"))),
        Panel("Sessions a step", "timeseries", "none",
              ((f"rate(netssmd_batch_sessions_sum{RATE}) / rate(netssmd_batch_sessions_count{RATE})",
                "{{instance}}"),)),
        Panel("Tokens", "timeseries", "cps", (per_second("netssmd_tokens_total"),)),
        Panel("Waiting", "timeseries", "none",
              (gauge("netssmd_held_packets", "packets"),
               gauge("netssmd_inbox_batches", "batches"))),
        Panel("Throttled a session", "timeseries", "percentunit",
              ((f"rate(netssmd_throttled_seconds_total{RATE}) / on (instance) "
                f"clamp_min(sum by (instance) (netssmd_sessions_active{ONE}), 1)", "{{instance}}"),)),
        Panel("Processor and memory", "timeseries", "none",
              (('rate(process_cpu_seconds_total{job="netssmd",instance=~"$instance"}[$__rate_interval])',
                "cores {{instance}}"),
               ('process_resident_memory_bytes{job="netssmd",instance=~"$instance"} / 1e9', "GB {{instance}}"),
               ('process_open_fds{job="netssmd",instance=~"$instance"} / 1000', "1000 files {{instance}}"))),
    ),
    "Rules of TCP/IP": (
        Panel("Findings in 100 packets", "timeseries", "none",
              ((f"100 * sum by (finding) (rate(netssmd_findings_total{RATE})) / on () group_left () "
                f"sum(rate(netssmd_packets_total{RATE}))", "{{finding}}"),), 12),
        Panel("TCP flows by ending", "timeseries", "cps",
              (per_second("netssmd_tcp_flows_ended_total", "ending"),), 6, stack=True),
        Panel("Complete handshakes", "timeseries", "percentunit",
              (('sum(rate(netssmd_tcp_flow_findings_total{finding="handshake",instance=~"$instance"}[$__rate_interval]))'
                f" / sum(rate(netssmd_tcp_flows_ended_total{RATE}))", "of TCP flows"),), 6),
    ),
    "Sinks": (
        Panel("Packets by sink", "timeseries", "pps", (per_second("netssmd_sink_packets_total", "sink"),), 6),
        Panel("Dropped", "timeseries", "pps", (per_second("netssmd_sink_packets_dropped_total", "sink"),), 6),
        Panel("Slices an hour", "timeseries", "none",
              ((f"3600 * rate(netssmd_files_written_total{RATE})", "{{instance}}"),), 6),
        Panel("Disk", "timeseries", "bytes",
              (gauge("netssmd_disk_free_bytes", "free"), gauge("netssmd_disk_floor_bytes", "floor")), 6),
        Panel("Snapshots", "timeseries", "s",
              ((f"time() - netssmd_snapshot_timestamp_seconds{ONE}", "age {{instance}}"),
               gauge("netssmd_snapshot_stall_seconds", "stall")), 6),
        Panel("Snapshots that failed", "timeseries", "cps",
              (per_second("netssmd_snapshots_failed_total"),), 6),
        Panel("Events", "timeseries", "cps", (per_second("netssmd_events_total", "kind"),), 12),
        Panel("Broker", "timeseries", "none", (gauge("netssmd_broker_connected", "connected"),), rare=True),
        Panel("TAP frames", "timeseries", "pps", (per_second("netssmd_tap_frames_total", "tap"),), rare=True),
        Panel("TAP drops", "timeseries", "pps", (per_second("netssmd_tap_dropped_total", "tap, drop"),),
              rare=True),
        Panel("TAP lateness", "timeseries", "s",
              (quantile(0.5, "netssmd_tap_lateness_seconds", "tap"),
               quantile(0.99, "netssmd_tap_lateness_seconds", "tap")),
              rare=True),
    ),
}  # fmt: skip

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend,
            **({"instant": True, "format": "table"} if table else {}),
        }
        for i, (query, legend) in enumerate(panel.queries)
    ]  # fmt: skip
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if panel.stack else "none"}}
    made: dict[str, Any] = {
        "id": number, "type": panel.kind, "title": panel.title, "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height}, "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom}, "overrides": []},
    }  # fmt: skip
    if panel.title == "Up":
        steps = [{"color": "red", "value": None}, {"color": "green", "value": 1}]
        made["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    return made


def dashboard() -> dict[str, Any]:
    """Grafana's model of it, schema 39 (Grafana 10 and later)."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in PANELS.items():
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": title, "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": [],
        })  # fmt: skip
        x, y = 0, y + 1
        for panel in row:
            if x + panel.width > 24:
                x, y = 0, y + panel.height
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x += panel.width
        y += row[-1].height
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "instance", "type": "query", "label": "Instance", "datasource": SOURCE, "refresh": 2,
            "query": {"query": "label_values(netssmd_build_info, instance)", "refId": "instance"},
            "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
        },
    ]  # fmt: skip
    return {
        "uid": "netssmd", "title": "netssmd", "tags": ["netssmd"], "schemaVersion": 39, "version": 1, "editable": True,
        "time": {"from": "now-1h", "to": "now"}, "refresh": "15s", "timezone": "browser",
        "templating": {"list": variables}, "panels": panels,
    }  # fmt: skip


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    DASHBOARD.write_text(text())
    print(DASHBOARD)
