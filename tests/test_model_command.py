"""`netssmd model show|list`: what a model is, on paper and as JSON; and what is no model."""

import json
from pathlib import Path

import pytest
from tiny_model import LABELS, tiny_model

from netssmd import cli
from netssmd.model.checkpoint import model_hash


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "models" / "tiny")


def test_show(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["model", "show", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["labels"] == list(LABELS) and report["hash"] == model_hash(model)
    assert report["conditions"] == ["rtt_ms", "rate_mbit", "loss_pct"]
    assert report["config"]["d_model"] == 32 and report["parameters"] > 10_000 and report["state_bytes"] > 1_000
    fields = report["vocabulary"]["fields"]
    assert sum(fields.values()) == report["vocabulary"]["tokens"] == report["config"]["vocab_size"]
    assert report["card"].startswith("A model of random numbers")
    assert cli.run(["model", "show", str(model)]) == 0
    text = capsys.readouterr().out
    assert "dns, video-dash, web" in text and "d_model 32" in text and "A model of random numbers" in text


def test_a_card_is_text_whatever_its_bytes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "README.md").write_bytes(b"# A card\n\x1b[2J\xff\n")
    assert cli.run(["model", "show", str(model)]) == 0
    assert capsys.readouterr().out.endswith("# A card\n\ufffd[2J\ufffd\n")


def test_list(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "no-model").mkdir()
    assert cli.run(["model", "list", str(model.parent), "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["models"] if row["name"] != "embedded"]
    assert [(row["folder"], row["hash"]) for row in rows] == [(str(model), model_hash(model))]
    assert cli.run(["model", "list", str(model.parent)]) == 0
    assert "3 labels" in capsys.readouterr().out


def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["model", "show", str(tmp_path)]) == 1
    assert "config.json: no such file" in capsys.readouterr().err
    assert cli.run(["model", "list", str(tmp_path / "gone")]) == 1
    assert cli.run(["model", "import", "x"]) == 2
