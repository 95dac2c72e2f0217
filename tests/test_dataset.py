"""The data folder: what was written is what is read, and no half-written folder gets the name."""

import json
from pathlib import Path

import numpy as np
import pytest
from learn_data import random_session, small_vocabulary, write_data

from netssmd.errors import OutputError, UsageError
from netssmd.learn.dataset import DatasetWriter, open_dataset

VOCABULARY = small_vocabulary()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sessions = [random_session(VOCABULARY, length, rng) for length in (5, 1, 70)]
    with DatasetWriter(tmp_path / "data", sessions[0][2].shape[1], 3) as writer:
        for number, session in enumerate(sessions):
            writer.shards["val"].append(*session, label=number - 1, conditions=[7, 8, number], packets=9, file=4)
        assert not (tmp_path / "data").exists(), "nothing under its name before it is whole"
        writer.finish({"fields": []}, {"files": []})
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    dataset = open_dataset(tmp_path / "data")
    assert len(dataset.train.sessions) == len(dataset.train.tokens) == 0
    for number, (session, record) in enumerate(zip(sessions, dataset.val.sessions, strict=True)):
        where = slice(record["start"], record["start"] + record["length"])
        for written, read in zip(session, (dataset.val.tokens, dataset.val.limits, dataset.val.features), strict=True):
            np.testing.assert_array_equal(written, read[where])
        assert (record["label"], record["packets"], record["file"]) == (number - 1, 9, 4)
        assert record["conditions"].tolist() == [7, 8, number]
    assert isinstance(dataset.val.tokens, np.memmap)
    assert dataset.val.packets == 27


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "data", 1, 1):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), DatasetWriter(tmp_path / "data", 1, 1):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_existing_folders_are_respected(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    with pytest.raises(OutputError, match="--overwrite"):
        DatasetWriter(tmp_path / "data", 1, 1)
    (tmp_path / "data" / "vocabulary.json").unlink()
    with pytest.raises(OutputError, match="no data folder"):
        DatasetWriter(tmp_path / "data", 1, 1, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        DatasetWriter(tmp_path / "file", 1, 1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_folder_says_what_is_wrong(tmp_path: Path, split: str) -> None:
    write_data(tmp_path / "data")
    file = tmp_path / "data" / split / "limits.npy"
    np.save(file, np.zeros(3, np.uint16))
    with pytest.raises(UsageError, match="do not agree"):
        open_dataset(tmp_path / "data")
    file.write_bytes(b"no array")
    with pytest.raises(UsageError, match=r"limits\.npy"):
        open_dataset(tmp_path / "data")
    file.unlink()
    with pytest.raises(UsageError, match=r"limits\.npy"):
        open_dataset(tmp_path / "data")


def test_no_data_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="netssmd prepare"):
        open_dataset(tmp_path)
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        open_dataset(tmp_path)


def test_the_vocabulary_comes_back(tmp_path: Path) -> None:
    vocabulary = write_data(tmp_path / "data")
    assert open_dataset(tmp_path / "data").vocabulary == json.loads(json.dumps(vocabulary.to_json()))
