"""Training: it learns, a resumed run is the uninterrupted one bit for bit, and the accounts add up. Tiny models on
random sessions."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from learn_data import JsonCodec, write_data
from safetensors import SafetensorError

from netssmd.errors import ConfigError, NetssmdError, OutputError, UsageError
from netssmd.learn.config import TrainConfig, load_train_config
from netssmd.learn.dataset import open_dataset
from netssmd.learn.train import Progress, Trainer, Validation, as_before, dropout, learning_rate, train
from netssmd.model.checkpoint import load_tensors_numpy

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with as_before():
        torch.set_num_threads(1)
        yield


def tiny(tmp_path: Path, steps: int, **changes: dict[str, Any]) -> TrainConfig:
    if not (tmp_path / "data").exists():
        write_data(tmp_path / "data")
    sections: dict[str, Any] = {
        "data": str(tmp_path / "data"),
        "model": {"d_model": 32, "n_layer": 2, "d_state": 8, "headdim": 16, "chunk_size": 16},
        "batch": {"streams": 2, "segment": 32},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2},
        "length": {"tokens": steps * 64},
        "validation": {"every_steps": 0, "tokens": 400},
        "output": {"path": str(tmp_path / "out"), "log_steps": 5, "checkpoint_steps": 0},
        "machine": {"device": "cpu", "precision": "fp32", "threads": 1},
    }
    for name, values in changes.items():
        sections[name] = {**sections[name], **values} if isinstance(values, dict) else values
    return msgspec.convert(sections, TrainConfig)


def weights(config: TrainConfig) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(Path(config.output.path) / "last" / "tensors.safetensors")


def test_the_documented_defaults_are_the_defaults() -> None:
    file = ROOT / "config" / "train.toml"
    assert load_train_config(file) == TrainConfig()
    assert msgspec.toml.decode(file.read_bytes()) == json.loads(msgspec.json.encode(TrainConfig())), (
        "every key is documented"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr = 1", "lr: unknown key; known here: data, seed"),
        ("[optimizer]\nwarmup_step = 1", r"optimizer\.warmup_step: unknown key; did you mean warmup_steps\?"),
        ("[model]\nd_model = 0", r"model\.d_model: found 0; write a whole number from 1, such as 192"),
        ("[optimizer]\nlearning_rate = nan", r"optimizer\.learning_rate"),
        ("[optimizer]\nbetas = [0.9]", r"optimizer\.betas: found \[0\.9\]; write a list"),
        ("[length]\ntokens = 0", "length.tokens"),
        ("[length]\nhours = inf", r"length\.hours is inf"),
        ("[model]\nheaddim = 7", "headdim"),
        ("[model", "not TOML"),
    ],
)
def test_a_wrong_config_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "train.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_train_config(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_the_learning_rate_warms_up_and_decays_to_its_share() -> None:
    config = TrainConfig()
    top = config.optimizer.learning_rate
    assert learning_rate(config, 0, 0.0) == pytest.approx(top / 200)
    assert learning_rate(config, 199, 0.0) == pytest.approx(top)
    assert learning_rate(config, 10_000, 0.5) == pytest.approx(top * 0.55)
    assert learning_rate(config, 10_000, 1.0) == pytest.approx(top * 0.1)
    assert learning_rate(config, 9, 0.05) == pytest.approx(top, rel=0.01)  # a short training is warm sooner


def test_it_learns_and_tells_a_label_gap(tmp_path: Path) -> None:
    config = tiny(tmp_path, 250, optimizer={"ema": 0.9})
    news: list[Progress | Validation] = []
    result = train(config, JsonCodec(), report=news.append)
    progress = [n for n in news if isinstance(n, Progress)]
    assert result.finished and result.step == 250 and progress[-1].share == 1.0
    assert progress[-1].bits_per_packet < 0.6 * progress[0].bits_per_packet
    validation = result.validation
    assert validation is not None
    assert sum(validation.by_field.values()) == pytest.approx(validation.bits_per_packet)
    assert set(validation.by_label) == {"chat", "dns", "web"}
    assert validation.label_gap > 1, "the sessions of a label have favourite tokens"
    log = [json.loads(row) for row in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in log] == ["train"] * len(progress) + ["val"]
    bias = load_tensors_numpy(tmp_path / "out" / "model")["lm_head.bias"]
    seen = np.bincount(np.load(tmp_path / "data" / "train" / "tokens.npy"), minlength=len(bias)) > 0
    assert (bias[seen] == 0).all() and (bias[~seen] < -1000).all() and not seen.all()
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert f"{validation.bits_per_packet:.2f}" in card and "| chat |" in card


def test_validation_loss_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    results = []
    for streams, segment in ((1, 500), (2, 32), (3, 7)):
        config = tiny(tmp_path, 4, batch={"streams": streams, "segment": segment})
        dataset = open_dataset(tmp_path / "data")
        results.append(Trainer(config, dataset, JsonCodec().load(dataset.vocabulary)).validate(0))
    for other in results[1:]:
        assert other.bits_per_packet == pytest.approx(results[0].bits_per_packet, rel=1e-5)
        assert other.by_label == pytest.approx(results[0].by_label, rel=1e-5)


@pytest.mark.parametrize("stop_after", [1, 7])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    whole = tiny(tmp_path, 15, output={"path": str(tmp_path / "whole")})
    train(whole, JsonCodec())
    parts = tiny(tmp_path, 15, output={"path": str(tmp_path / "parts")})
    asked = iter([False] * (stop_after - 1) + [True])
    first = train(parts, JsonCodec(), stop=lambda: next(asked))
    assert not first.finished and first.step == stop_after
    second = train(parts, JsonCodec())
    assert second.finished and second.step == 15
    expected, got = weights(whole), weights(parts)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    states = [json.loads((Path(c.output.path) / "last" / "state.json").read_text()) for c in (whole, parts)]
    assert states[0]["streams"] == states[1]["streams"]


def test_the_calling_thread_is_left_as_it_was(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    torch.set_num_threads(2)
    train(tiny(tmp_path, 2), JsonCodec())
    assert torch.get_num_threads() == 2
    assert torch.tensor([1e-40]).mul(0.5).item() > 0  # small numbers are not flushed to zero


def test_a_finished_training_is_left_alone_unless_fresh(tmp_path: Path) -> None:
    config = tiny(tmp_path, 3)
    train(config, JsonCodec())
    assert train(config, JsonCodec(), stop=lambda: pytest.fail("it stepped")).step == 3
    assert train(config, JsonCodec(), fresh=True).step == 3


@pytest.mark.parametrize(
    ("change", "says"), [({"model": {"n_layer": 1}}, "another model"), ({"batch": {"streams": 3}}, "another streams")]
)
def test_going_on_with_something_else_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    train(tiny(tmp_path, 2), JsonCodec())
    with pytest.raises(UsageError, match=says):
        train(tiny(tmp_path, 4, **change), JsonCodec())


def test_a_save_that_was_cut_between_renames_is_found(tmp_path: Path) -> None:
    config = tiny(tmp_path, 2)
    train(config, JsonCodec())
    last = tmp_path / "out" / "last"
    last.rename(last.with_name("last.old"))
    assert train(tiny(tmp_path, 3), JsonCodec()).step == 3


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    config = tiny(tmp_path, 4)
    train(config, JsonCodec())
    before = weights(config)
    with pytest.raises(NetssmdError, match="learning_rate"):
        train(tiny(tmp_path, 400, optimizer={"learning_rate": 1e30, "clip": 0.0}), JsonCodec())
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(config).items())


def test_a_training_by_the_clock_ends(tmp_path: Path) -> None:
    config = tiny(tmp_path, 1, length={"tokens": 0, "hours": 1e-4})
    result = train(config, JsonCodec())
    assert result.finished and result.step >= 1


def test_vectors_do_not_decay(tmp_path: Path) -> None:
    config = tiny(tmp_path, 1)
    dataset = open_dataset(tmp_path / "data")
    trainer = Trainer(config, dataset, JsonCodec().load(dataset.vocabulary))
    decayed, free = (group["params"] for group in trainer.optimizer.param_groups)
    assert all(p.dim() >= 2 for p in decayed) and all(p.dim() < 2 for p in free)
    assert len(decayed) + len(free) == len(list(trainer.model.parameters()))


def test_data_without_validation_sessions_still_trains(tmp_path: Path) -> None:
    write_data(tmp_path / "data", sessions=2)
    result = train(tiny(tmp_path, 2), JsonCodec())
    assert result.finished and result.validation is None
    assert "not validated" in (tmp_path / "out" / "model" / "README.md").read_text()


def test_missing_data_and_unwritable_output_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="netssmd prepare"):
        train(tiny(tmp_path, 1, data=str(tmp_path / "nowhere")), JsonCodec())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"output\.path"):
        train(tiny(tmp_path, 1, output={"path": str(tmp_path / "file")}), JsonCodec())


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("netssmd.learn.train.save_file", full)
    with pytest.raises(OutputError, match="No space left on device"):
        train(tiny(tmp_path, 1), JsonCodec())
    assert not list(tmp_path.rglob("*.part"))


def test_an_unknown_device_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"machine\.device"):
        train(tiny(tmp_path, 1, machine={"device": "abacus"}), JsonCodec())


def test_lanes_agree_with_one_thread(tmp_path: Path) -> None:
    results = []
    for threads in (1, 2):
        config = tiny(tmp_path, 5, machine={"threads": threads}, batch={"streams": 3})
        dataset = open_dataset(tmp_path / "data")
        trainer = Trainer(config, dataset, JsonCodec().load(dataset.vocabulary))
        assert len(trainer.lanes) == threads
        losses = [float(trainer.step()[1]) for _ in range(5)]
        results.append((losses, trainer.validate(0)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert results[0][1].by_field == pytest.approx(results[1][1].by_field, rel=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_in_lanes_resumes_bit_for_bit(tmp_path: Path, dropout: float) -> None:
    more = {"machine": {"threads": 2}, "batch": {"streams": 3}, "optimizer": {"dropout": dropout}}
    whole = tiny(tmp_path, 6, output={"path": str(tmp_path / "whole")}, **more)
    parts = tiny(tmp_path, 6, output={"path": str(tmp_path / "parts")}, **more)
    train(whole, JsonCodec())
    train(parts, JsonCodec(), stop=lambda: True)
    train(parts, JsonCodec())
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_dropout() -> None:
    values = torch.ones(100, 100)
    cpu = torch.device("cpu")
    once, again, other = (dropout(0.25, (1, 2, lane), cpu)(values) for lane in (0, 0, 1))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.unique().tolist() == pytest.approx([0.0, 4 / 3]) and once.mean() == pytest.approx(1, abs=0.03)
    assert dropout(0.0, (1, 2, 0), cpu)(values) is values


def test_left_time() -> None:
    progress = Progress(1, 1, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0)
    assert progress.left_seconds == pytest.approx(300)
    assert Progress(1, 1, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 100.0).left_seconds == math.inf
