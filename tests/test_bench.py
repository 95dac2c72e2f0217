"""`netssmd bench` on a tiny model: every key is there, stages add up, torch may be missing, a plot is a plot."""

import json
from pathlib import Path

import pytest
from tiny_model import tiny_model

from netssmd import cli
from netssmd.commands.bench import draw, lines
from netssmd.daemon import speed
from netssmd.engine.opening import open_model
from netssmd.model.config import ModelConfig
from netssmd.model.cpu_backend import available_isas

pytestmark = pytest.mark.skipif(not available_isas(), reason="the cpu backend is not compiled here")

KEYS = {"packets_per_second", "tokens_per_second", "ratio_to_eager", "roofline_share", "python_share", "runs", "kernel",
        "packets_per_second_paper_config"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def small_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ModelConfig(d_model=32, n_layer=1, d_state=16, headdim=16, vocab_size=272, rows=300)
    monkeypatch.setattr(speed, "PAPER", small)


def test_json(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = ["bench", "--quick", "--json", "--model", str(model)]
    plots = pytest.importorskip("matplotlib") and ["--plot", str(tmp_path / "plot.png")]
    assert cli.run([*arguments, *plots]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result.keys() >= KEYS and "bench: eager torch loop" in err
    assert all(result[key] > 0 for key in KEYS - {"runs", "kernel"})
    for run in result["runs"]:
        cpu = run["cpu_us_per_packet"]
        assert set(cpu) == {"model", "engine", "output", "control"} and all(v >= 0 for v in cpu.values())
        assert sum(cpu.values()) == pytest.approx(1e6 / run["packets_per_cpu_second"], rel=0.25)
        assert 0 < run["python_share"] < 1 and run["packets_per_second"] > 100
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_torch_it_says_what_was_skipped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "without_torch", lambda: "torch is not installed")
    result = speed.measure(open_model(str(model), "cpu"), True, lambda what: None)
    assert result["ratio_to_eager"] is None and result["packets_per_second_paper_config"] is None
    assert "torch is not installed" in "\n".join(lines(result))


def test_kl_of_bf16_weights_is_small_and_int8_larger(model: Path) -> None:
    opened = open_model(str(model), "cpu")
    bf16, int8 = (speed.weights_kl(opened, kind, 200) for kind in ("bf16", "int8"))
    assert 0 <= bf16 < int8 < 0.1


def test_a_plot_without_a_folder_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    run = {"sessions": 1, "threads": 1, "packets_per_second": 5.0, "cpu_us_per_packet": {"model": 1.0}}
    with pytest.raises(Exception, match="cannot be written"):
        draw(figure, {"parameters": 1, "weights": "bf16", "isa": "avx2", "runs": [run]}, tmp_path / "none" / "x.png")
