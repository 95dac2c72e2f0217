"""Weights that bring what is drawn nearer to training: how they are counted, and that a calibrated model says it."""

import json
from pathlib import Path

import frames
import numpy as np
import pytest
from tiny_model import tiny_model

from netssmd import cli
from netssmd.codec import vocab as v
from netssmd.codec.vocab import FLOW_SERVICE, Vocabulary
from netssmd.engine.opening import open_model
from netssmd.learn.calibrate import MOST, Tally, Weights, tally
from netssmd.learn.codec import ContextCodec
from netssmd.learn.conduct import FLOWS, conduct, speakers
from netssmd.learn.dataset import open_dataset
from netssmd.packet.pcap import Packet, PcapWriter
from netssmd.packet.wire import UDP

A4, B4 = frames.HOSTS4[:2]
T0 = 1_700_000_000_000_000_000
MADE: Vocabulary = frames.random_tokens().made_up_vocabulary()


def question(port: int, length: int, answers: bool = True) -> list[bytes]:
    """Datagrams to a known port and back."""
    there = frames.ethernet(A4, B4, frames.ipv4(A4, B4, 17, frames.udp(port, 443, bytes(length))))
    back = frames.ethernet(B4, A4, frames.ipv4(B4, A4, 17, frames.udp(443, port, bytes(length))))
    return [there, back] if answers else [there]


def test_who_says_a_token() -> None:
    """The session's stage before the flow is known; then the originator or the responder of a flow to its service."""
    sent = [*(data for port in range(5000, 5010) for data in question(port, 30)), question(5000, 30)[1]]
    packets = [(T0 + i * 1000, data, len(data)) for i, data in enumerate(sent)]
    (encoded,) = ContextCodec().encode(packets, MADE, escapes=True)
    services = encoded.features[:, FLOW_SERVICE].astype(int) - MADE.feature_base[FLOW_SERVICE]
    spoken = speakers(np.array(encoded.tokens), services, MADE)
    service = MADE.service_of(UDP, 443)
    names = MADE.token_names()
    said = [(int(who), names[token]) for token, who in zip(encoded.tokens, spoken, strict=True)]
    gaps = [who for who, name in said if name.startswith("iat:")]
    up, down = FLOWS + 2 * service, FLOWS + 2 * service + 1
    assert gaps == [up, down] * 10 + [down]
    assert {who for who, name in said if name.startswith(("service:", "port:"))} == {0, 1}
    assert [who for who, name in said if name.startswith("who:")] == [0] * 16 + [1] * 5


def drawn(counts: list[list[int]], field: int = v.IAT) -> Tally:
    """Sessions of the first label; each says the field's members so often, as the originator to service 1."""
    heard, lo, who = Tally(MADE), MADE.fields[field].lo, MADE.fields[v.WHO].lo + v.WHO_FLOW
    for session in counts:
        tokens = np.repeat(np.arange(lo, lo + len(session)), session)
        heard.hear(0, np.array([[who, token] for token in tokens]).ravel(), np.ones(2 * len(tokens), int))
    return heard


def test_what_is_drawn_too_often_gets_less_weight_until_it_is_not() -> None:
    """Draws of two members by their weights: 300 to 100 in training, even without weights."""
    training, weights = drawn([[300, 100]] * 10), Weights()
    for _ in range(20):
        logs = weights.logs.get((0, FLOWS + 2), np.zeros(MADE.size))[MADE.fields[v.IAT].lo :][:2]
        odds = np.exp(logs)
        weights.adjust(training, drawn([[round(400 * odds[0] / odds.sum()), round(400 * odds[1] / odds.sum())]] * 10))
    document = weights.document(MADE)
    name, first = MADE.service_names()[1], MADE.fields[v.IAT].lo
    (_, up), (_, down) = document["flow_weights"][MADE.labels[0]][name][0]
    assert 2.5 < up / down < 3.3 and document["weights"] == {}
    assert [token for token, _ in document["flow_weights"][MADE.labels[0]][name][0]] == [first, first + 1]


@pytest.mark.parametrize(
    "other",
    [
        [[800, 0], [0, 800]],  # sessions differ that much among themselves
        [[300, 100]] * 10,  # the same
        [[30, 30]],  # too few
    ],
)
def test_what_chance_explains_is_left_alone(other: list[list[int]]) -> None:
    weights = Weights()
    weights.adjust(drawn([[300, 100]] * 10), drawn(other))
    assert weights.document(MADE) == {"weights": {}, "flow_weights": {}}


def test_weights_are_bounded_and_a_sessions_end_has_none() -> None:
    weights = Weights()
    for _ in range(30):
        weights.adjust(drawn([[5000, 1]] * 10), drawn([[1, 5000]] * 10))
    assert np.abs(weights.logs[0, FLOWS + 2]).max() == MOST
    weights = Weights()
    weights.adjust(drawn([[500, 50, 50]] * 10, v.WHO), drawn([[50, 50, 500]] * 10, v.WHO))
    ends, opens = np.array([logs[[MADE.end, MADE.end + v.WHO_NEW]] for logs in weights.logs.values()]).T
    assert not ends.any() and opens.any()


def captures(folder: Path, sessions: int) -> None:
    """Sessions of label web: nine gaps in ten of 1 ms, the others of 100 ms; most datagrams of 52 bytes."""
    (folder / "web").mkdir(parents=True)
    for i in range(sessions):
        random = np.random.default_rng(i)
        with open(folder / "web" / f"{i}.pcap", "wb") as file:
            writer, now = PcapWriter(file), T0
            for port in range(6):
                for data in question(5000 + port, 517 if random.random() < 0.1 else 52) * 3:
                    now += 100_000_000 if random.random() < 0.1 else 1_000_000
                    writer.write(Packet(now, data, len(data)))
            writer.flush()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of random numbers that keeps to what the captures' tokens are, and the data made of them."""
    folder = tmp_path_factory.mktemp("calibrate")
    captures(folder / "captures", 40)
    model = tiny_model(folder / "tiny")
    assert cli.run(["prepare", str(folder / "captures"), "-o", str(folder / "data"), "--model", str(model)]) == 0
    data = open_dataset(folder / "data")
    said = conduct(data.train, Vocabulary.from_json(data.vocabulary))
    (model / "conduct.json").write_text(json.dumps(said))
    return model, folder / "data"


def test_a_calibrated_model_says_what_its_captures_said(
    prepared: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = prepared
    before = json.loads((model / "conduct.json").read_text())
    options = ["--rounds", "5", "--sessions", "40", "--seed", "3", "--threads", "2", "--json"]
    assert cli.run(["calibrate", str(model), "--data", str(data), *options]) == 0
    out, err = capsys.readouterr()
    distances = json.loads(out)["distances"]
    assert len(distances) == 6 and err.count("round ") == 6
    assert distances[0]["iat"] > 0.3 > 3 * distances[-1]["iat"]
    after = json.loads((model / "conduct.json").read_text())
    assert {key: after[key] for key in before} == before and set(after) == {*before, "weights", "flow_weights"}
    vocabulary = open_model(str(model)).vocabulary
    assert isinstance(vocabulary, Vocabulary)
    service, gaps = vocabulary.service_of(UDP, 443), vocabulary.fields[v.IAT]
    lo, _, factors = vocabulary.repertoire("web").of_flow(service, 0).within(gaps.lo, gaps.lo + gaps.size)
    odds = np.frombuffer(factors, np.float32)
    short, long = (gaps.lo - lo + v.IAT_BINS.find(ns) for ns in (1_000_000, 100_000_000))
    assert odds[short] > 2 * odds[long] > 0
    training = tally(open_dataset(data).train, vocabulary)
    assert training.distances(training) == dict.fromkeys(distances[0], 0.0)


def test_what_cannot_be_calibrated_is_refused(
    prepared: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = prepared

    def refused(*arguments: object) -> str:
        assert cli.run(["calibrate", *map(str, arguments)]) in (1, 2)
        return capsys.readouterr().err

    assert "no vocabulary.json" in refused(model, "--data", tmp_path)
    assert "no such folder" in refused(tmp_path / "none", "--data", data)
    other = tiny_model(tmp_path / "other")
    document = json.loads((other / "config.json").read_text())
    document["codec"]["labels"] = ["dns", "video-dash", "mail"]
    (other / "config.json").write_text(json.dumps(document))
    assert "prepared with another vocabulary" in refused(other, "--data", data)
    (model / "conduct.json").rename(tmp_path / "kept.json")
    try:
        assert "tells no label's tokens" in refused(model, "--data", data)
    finally:
        (tmp_path / "kept.json").rename(model / "conduct.json")


def test_each_side_of_the_flows_to_a_service_is_counted_by_itself() -> None:
    heard = drawn([[200, 200]] * 3)
    heard.hear(0, np.array([MADE.fields[v.WHO].lo + v.WHO_FLOW + 1, MADE.fields[v.IAT].lo]), np.full(2, 7))
    assert set(heard.sums) >= {(0, 0), (0, FLOWS + 2), (0, FLOWS + 2 * 7 + 1)}
