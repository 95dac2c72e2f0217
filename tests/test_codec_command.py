"""`netssmd codec`: its figures, its exit codes, and what it says of files that it cannot read."""

import gzip
import io
import json
import random
from pathlib import Path

import frames
import pytest
from tiny_model import tiny_model

from netssmd import cli
from netssmd.codec import decoder
from netssmd.commands import codec
from netssmd.packet.pcap import Packet, PcapWriter

KEYS = [
    "files", "packets", "exact_packets", "escaped_packets", "tokens", "tokens_per_packet", "bits_per_packet",
    "tokens_per_packet_by_field", "problems", "encode_packets_per_second",
]  # fmt: skip


def capture(path: Path, seed: int, packets: int = 40) -> Path:
    file = io.BytesIO()
    writer = PcapWriter(file)
    now_ns = 10**18
    rng = random.Random(seed)
    for _ in range(packets):
        now_ns += rng.randrange(10**6)
        writer.write(Packet(now_ns, *frames.record(rng)))
    writer.flush()
    content = file.getvalue()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def report(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, object], str]:
    code = cli.run(["codec", *map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_figures_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "web").mkdir()
    capture(tmp_path / "web" / "a.pcap", 1)
    capture(tmp_path / "b.cap.gz", 2)
    (tmp_path / "notes.txt").write_text("not a capture")
    code, found, err = report(capsys, tmp_path)
    assert code == 0 and err == ""
    assert list(found) == KEYS
    assert found["files"] == 2 and found["packets"] == found["exact_packets"] == 80 and found["problems"] == []
    by_field = found["tokens_per_packet_by_field"]
    assert isinstance(by_field, dict) and by_field["iat"] == 1
    assert sum(by_field.values()) == pytest.approx(found["tokens_per_packet"], abs=0.01)
    assert cli.run(["codec", str(tmp_path), "--bench"]) == 0
    text = capsys.readouterr().out
    assert "by the model" in text or "empirical entropy" in text  # the embedded model's, where there is one
    assert "packets/s" in text and "tcp_shape" in text


def test_damage_is_told_and_what_came_before_it_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = capture(tmp_path / "whole.pcap", 3)
    (tmp_path / "cut.pcap").write_bytes(whole.read_bytes()[:-5])
    (tmp_path / "noise.pcap").write_bytes(b"noise" * 9)
    code, found, err = report(capsys, tmp_path)
    assert code == 0
    assert (found["files"], found["packets"], found["exact_packets"]) == (2, 79, 79)
    assert [Path(problem["file"]).name for problem in found["problems"]] == ["cut.pcap", "noise.pcap"]  # type: ignore
    assert err.count("netssmd: ") == 2 and "cut short" in err and "not a capture" in err


def test_nothing_readable_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.pcap").write_bytes(b"noise")
    code, found, _ = report(capsys, tmp_path)
    assert code == 1 and found["files"] == 0


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_usage(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert report(capsys, tmp_path / what)[0] == 2


def test_a_model_gives_its_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = capture(tmp_path / "a.pcap", 4)
    vocabulary = frames.random_tokens().made_up_vocabulary()
    (tmp_path / "config.json").write_text(json.dumps({"codec": vocabulary.to_json()}))
    assert cli.run(["codec", str(path), "--model", str(tmp_path)]) == 0
    assert f"vocabulary of {vocabulary.size:,}, of {tmp_path}" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({"codec": {"name": "other"}}))
    assert cli.run(["codec", str(path), "--model", str(tmp_path)]) == 1
    assert "expected 'context'" in capsys.readouterr().err
    assert cli.run(["codec", str(path), "--model", str(tmp_path / "nowhere")]) == 1


def test_a_damaged_model_is_an_error_where_it_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = capture(tmp_path / "a.pcap", 4), tiny_model(tmp_path / "m")
    assert cli.run(["codec", str(path), "--model", str(model)]) == 0
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    capsys.readouterr()
    assert cli.run(["codec", str(path), "--model", str(model)]) == 1
    assert "model.safetensors: tensor" in capsys.readouterr().err


def test_a_mismatch_names_file_packet_byte_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pcap"
    data = frames.ethernet(*frames.HOSTS4[:2], frames.ipv4(*frames.HOSTS4[:2], 17, frames.udp(1, 2, b"x")))
    writer = PcapWriter(file := io.BytesIO())
    writer.write_many(Packet(10**18 + i, data, len(data)) for i in range(3))
    writer.flush()
    path.write_bytes(file.getvalue())
    right = decoder.decode

    def wrong(encoded, vocabulary):  # type: ignore[no-untyped-def]
        for number, (ts_ns, frame, orig_len) in enumerate(right(encoded, vocabulary)):
            yield ts_ns, frame[:22] + bytes([99 if number == 1 else frame[22]]) + frame[23:], orig_len

    monkeypatch.setattr(decoder, "decode", wrong)
    code, found, err = report(capsys, path)
    assert code == 1 and found["exact_packets"] == 2
    assert err == f"netssmd: {path}: packet 2: ttl at byte 22 is 0x63, was 0x40\n"


def test_which_files_are_captures() -> None:
    assert all(map(codec.is_capture, ("a.pcap", "a.PCAPNG", "a.cap.gz", "a.b.pcap.zst")))
    assert not any(map(codec.is_capture, ("a.gz", "a.txt", ".a.pcap", "pcap", "a.pcap.bz2")))


def test_a_byte_model_sees_what_fits_and_says_what_is_no_packet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole packets come back as they were; UDP has no place; garbled frames are told by reason, nothing refused."""
    from byte_models import byte_model, talk

    model = byte_model(tmp_path / "model")
    good = talk()
    udp = bytearray(good[0].data)
    udp[23] = 17
    cut, group = good[0].data[:30], bytearray(good[0].data)
    group[26:30] = b"\xe0\0\0\1"
    file = tmp_path / "amazon.pcap"
    with open(file, "wb") as out:
        writer = PcapWriter(out)
        for data in (*[p.data for p in good], bytes(udp), cut, bytes(group)):
            writer.write(Packet(10**18, data, len(data)))
        writer.flush()
    code, found, err = report(capsys, file, "--model", model, "--bits-packets", 2)
    assert code == 0 and err == "" and found["codec"] == "bytes"
    assert (found["packets"], found["fitting_packets"], found["exact_packets"]) == (13, 11, 10)
    assert found["left_out_packets"] == {"protocol": 1, "cut": 1} and found["malformed_packets"] == {"address": 1}
    assert found["tokens"] == 11 * 95 and found["tokens_per_packet"] == 95 and found["judged_packets"] == 2
    assert 300 < found["bits_per_packet"] < 3000  # type: ignore[operator]
    assert cli.run(["codec", str(file), "--model", str(model), "--bits-packets", "0"]) == 0
    text = capsys.readouterr().out
    assert "bits per packet" not in text and "it ends inside its headers" in text and "from a group" in text
    config = model / "config.json"
    config.write_text(config.read_text().replace('"packet_bytes": 94', '"packet_bytes": 9'))
    assert cli.run(["codec", str(file), "--model", str(model)]) == 1
    assert "codec: packets of 9 bytes; there are 94, 106, 128" in capsys.readouterr().err
