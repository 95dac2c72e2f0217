"""What operators get, run for real: rules by promtool, and configuration, rules and every query of the dashboard by a
Prometheus that scrapes a daemon."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_service import free_port

from netssmd.daemon.metrics import METRICS

ROOT = Path(__file__).parent.parent
MONITORING = ROOT / "monitoring"

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs prometheus (tools/test_programs.sh installs it)",
)


def tool() -> Any:
    """tools/dashboard.py."""
    spec = importlib.util.spec_from_file_location("dashboard", ROOT / "tools" / "dashboard.py")
    assert spec and spec.loader
    module = sys.modules["dashboard"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_configuration_and_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "rules found" in promtool("check", "rules", "recording-rules.yml", "alert-rules.yml")


def test_alerts_come_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alert-rules-test.yml")


def test_each_alert_has_a_case_in_which_it_comes() -> None:
    cases = (MONITORING / "alert-rules-test.yml").read_text()
    for name in re.findall(r"- alert: (\w+)", (MONITORING / "alert-rules.yml").read_text()):
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n", cases), name


def test_rules_and_dashboard_name_metrics_that_there_are() -> None:
    there = {row.exposed for rows in METRICS.values() for row in rows}
    there |= {f"{row.name}_{end}" for rows in METRICS.values() for row in rows for end in ("bucket", "sum", "count")}
    for path in (*MONITORING.glob("*-rules.yml"), MONITORING / "grafana-dashboard.json"):
        text = re.sub(r"instance:\w+:\w+", "", path.read_text())
        named = set(re.findall(r"\bnetssmd_\w+", text)) - {"netssmd"}
        assert named and named <= there, path


def test_the_dashboard_is_that_of_the_table() -> None:
    assert tool().DASHBOARD.read_text() == tool().text(), "run `python tools/dashboard.py`"


# --- a real Prometheus on a real daemon -------------------------------------------------------------------------------

DAEMON = """
[engine]
threads = 1
[traffic]
seed = 3
concurrency = 6
ramp = "0s"
session_packets = 60
[traffic.labels]
web = 1
dns = 1
download = 1
[compliance.anomalies]
syn_in_established = 0.05
[output]
directory = "{folder}/captures"
slice_duration = "2s"
free_disk = "1MB"
[snapshot]
interval = "1s"
[metrics]
port = {port}
"""


class Prometheus:
    """One that scrapes, and its API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **arguments: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            got = json.load(answer)
        assert got["status"] == "success", got
        return got["data"]

    def query(self, text: str) -> list[Any]:
        result: list[Any] = self.get("query", query=text)["result"]
        return result


@contextlib.contextmanager
def ended(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scraping each half second a daemon on the embedded model, since a dozen scrapes."""
    folder = tmp_path_factory.mktemp("prometheus")
    daemon, port = free_port(), free_port()
    (folder / "netssmd.toml").write_text(DAEMON.format(folder=folder, port=daemon))
    config = (MONITORING / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9464", f"127.0.0.1:{daemon}").replace("15s", "500ms")
    for name in ("recording-rules.yml", "alert-rules.yml"):
        config = config.replace(name, str(MONITORING / name))
    (folder / "prometheus.yml").write_text(config)
    run = [sys.executable, "-m", "netssmd", "run", "-c", str(folder / "netssmd.toml")]
    serve = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]  # fmt: skip
    with ended(run, folder / "daemon.log"), ended(serve, folder / "prometheus.log"):
        server, deadline = Prometheus(f"http://127.0.0.1:{port}"), time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                enough = server.query("count_over_time(netssmd_tcp_flow_findings_total{finding='handshake'}[1m]) > 9")
                saved = server.query("netssmd_snapshot_timestamp_seconds")
                if enough and saved and server.query("netssmd_files_written_total > 1"):
                    break
            time.sleep(0.2)
        else:
            pytest.fail((folder / "daemon.log").read_text() + (folder / "prometheus.log").read_text())
        yield server


def test_the_scrape_configuration_finds_the_daemon(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    assert target["health"] == "up" and target["labels"]["job"] == "netssmd"


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    groups = prometheus.get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10 and {rule["health"] for rule in rules} == {"ok"}
    for rule in rules:
        if rule["type"] == "recording" and "tap" not in rule["name"]:
            assert prometheus.query(rule["name"]), rule["name"]
    assert not [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]


def test_every_query_of_the_dashboard_gives_data(prometheus: Prometheus) -> None:
    rare = {panel.title for row in tool().PANELS.values() for panel in row if panel.rare}
    panels = [p for p in json.loads(tool().DASHBOARD.read_text())["panels"] if p["type"] != "row"]
    assert len(panels) > 20
    empty = []
    for panel in panels:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            assert "$" not in query
            if not prometheus.query(query):
                empty.append(panel["title"])
    assert set(empty) == rare
    with pytest.raises(urllib.error.HTTPError):
        prometheus.query("sum by (rate(")


def test_the_dashboards_variable_finds_the_instance(prometheus: Prometheus) -> None:
    assert len(prometheus.get("label/instance/values", **{"match[]": "netssmd_build_info"})) == 1
