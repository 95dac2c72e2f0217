"""The table of metrics: what it says, what a scrape gives, and that document and golden exposition are its."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from metrics_fixture import exposition, fixed_service
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from netssmd.daemon.histogram import Histogram
from netssmd.daemon.metrics import LABELS, METRICS, Row, _family, document, registry
from netssmd.daemon.status import line, status_of

ROOT = Path(__file__).parent.parent
ROWS = [row for rows in METRICS.values() for row in rows]
AGAIN = "run `python tools/metrics.py` and look at the difference"


def test_the_document_is_that_of_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == document(), AGAIN


def test_the_exposition_is_the_golden_one(tmp_path: Path) -> None:
    assert (ROOT / "tests" / "golden" / "metrics.txt").read_text() == exposition(fixed_service(tmp_path)), AGAIN


def test_the_status_tells_what_is_no_packet(tmp_path: Path) -> None:
    status = status_of(fixed_service(tmp_path))
    assert status.malformed == {"cut": 3} and "3 malformed" in line(status)


def test_names_units_and_labels() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert re.fullmatch(r"netssmd_[a-z]+(_[a-z]+)*", row.name) and not row.name.endswith("_total"), row
        assert not re.search(r"_(ns|ms|us|minutes|mb|kb|millis|percent)(_|$)", row.name), row
        assert row.help.endswith(".") and "|" not in row.help, row
        assert set(row.labels) <= set(LABELS), row
    assert {label for row in ROWS for label in row.labels} == set(LABELS)


def test_openmetrics_parses_strictly(tmp_path: Path) -> None:
    text = openmetrics(registry(fixed_service(tmp_path))).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {row.name for row in ROWS} <= families.keys()
    assert "process_resident_memory_bytes" in families


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool (tools/test_programs.sh installs it)")
def test_promtool_has_no_objection(tmp_path: Path) -> None:
    assert promtool(exposition(fixed_service(tmp_path))) == ""
    assert "counter" in promtool("# HELP bad x\n# TYPE bad counter\nbad 1\n")


def promtool(text: str) -> str:
    """What `promtool check metrics` complains of."""
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


def test_a_histogram_of_nanoseconds_is_told_in_seconds() -> None:
    histogram = Histogram((1_000_000, 10_000_000))
    for value in (1, 1_000_000, 1_000_001, 5_000_000_000):
        histogram.observe(value)
    other = Histogram((1_000_000, 10_000_000))
    other.observe(2)
    row = Row("netssmd_x_seconds", "histogram", ("label",), "X.", lambda s: {}, per=1_000_000_000)
    family = _family(row, {"web": histogram + other})

    class One(CollectorRegistry):
        def collect(self):  # type: ignore[no-untyped-def]
            yield family

    samples = {(s.name, s.labels.get("le")): s.value for s in next(iter(One().collect())).samples}
    assert samples == {
        ("netssmd_x_seconds_bucket", "0.001"): 3,
        ("netssmd_x_seconds_bucket", "0.01"): 4,
        ("netssmd_x_seconds_bucket", "+Inf"): 5,
        ("netssmd_x_seconds_count", None): 5,
        ("netssmd_x_seconds_sum", None): pytest.approx(5.002000004),
    }
