"""What training says of its labels' conduct, and that what it says can be read and keeps what is drawn to it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import frames
import numpy as np
import pytest
from tiny_model import tiny_model

from netssmd.codec import vocab as v
from netssmd.codec.context import MOST_OVERTIME
from netssmd.codec.decoder import Decoder, Habits
from netssmd.codec.vocab import Repertoire, Vocabulary
from netssmd.engine.identities import FreshIdentities
from netssmd.engine.mix import in_proportion
from netssmd.engine.opening import open_model
from netssmd.engine.plan import address_plan
from netssmd.engine.sampling import Stream
from netssmd.engine.session import Limits, Session, SessionInfo
from netssmd.errors import CheckpointError
from netssmd.learn.codec import ContextCodec
from netssmd.learn.conduct import conduct
from netssmd.learn.dataset import Shard, session_dtype
from netssmd.model.conduct import load_temperatures, parse_conduct
from netssmd.packet.wire import FIN, TCP, UDP, parse

A4, B4 = frames.HOSTS4[:2]
T0 = 1_700_000_000_000_000_000
MADE: Vocabulary = frames.random_tokens().made_up_vocabulary()


def connection(port: int, how: str) -> list[bytes]:
    """A whole one: closed by both sides, or reset; "late" without its handshake, "open" without an end."""
    a, b = (A4, B4), (B4, A4)
    said = [(a, port, 443, 2, 0, 0), (b, 443, port, 0x12, 0, 1), (a, port, 443, 16, 1, 1)] if how != "late" else []
    said += [(a, port, 443, 24, 1, 1), (b, 443, port, 16, 1, 2)]
    if how == "closed":
        said += [(a, port, 443, 17, 2, 1), (b, 443, port, 17, 1, 3), (a, port, 443, 16, 3, 2)]
    elif how == "crossed":  # what the originator is sent after its FIN it answers with RST
        said += [(a, port, 443, 17, 2, 1), (b, 443, port, 24, 1, 3), (a, port, 443, 4, 3, 0), (b, 443, port, 17, 2, 3)]
    elif how != "open":
        said += [(b, 443, port, 4, 1, 0)]
    packets = []
    for hosts, sport, dport, flags, seq, ack in said:
        segment = frames.tcp(sport, dport, flags, seq, ack, payload=bytes(flags == 24))
        packets.append(frames.ethernet(*hosts, frames.ipv4(*hosts, 6, segment)))
    return packets


def shard(*sessions: list[bytes], gap_ns: int = 1_000_000) -> Shard:
    """Sessions of MADE's first label as training has them."""
    encoded = []
    for frames_ in sessions:
        packets = [(T0 + i * gap_ns, data, len(data)) for i, data in enumerate(frames_)]
        encoded += ContextCodec().encode(packets, MADE, escapes=True)
    records = np.zeros(len(sessions), session_dtype(len(v.CONDITIONS)))
    start = 0
    for record, one in zip(records, encoded, strict=True):
        record["start"], record["length"], record["label"], record["packets"] = start, len(one.tokens), 0, one.packets
        start += len(one.tokens)
    together = [np.concatenate([getattr(one, name) for one in encoded]) for name in ("tokens", "limits", "features")]
    return Shard(*together, records)


def test_it_tells_resets_lengths_tokens_and_extents() -> None:
    label = MADE.labels[0]
    sessions = [connection(5000 + i, "reset" if i % 4 == 0 else "closed") for i in range(40)]
    said = conduct(shard(*sessions), MADE)
    read = parse_conduct(json.loads(json.dumps(said)), MADE.size, MADE.service_names())
    assert read.habits(label, True).reset_share == 0.25
    assert said["shortest"][label] in (5, 6)  # six packets, by their bin
    assert said["closes_from"] == {label: 0.62}  # five of eight come before the first FIN
    assert said["fin_behind_rst"] == {}
    service = MADE.service_names()[MADE.service_of(TCP, 443)]
    extents = said["extents"][label]
    lengths = [packets for one in extents for packets, _ in one[3][service]]
    assert 30 < len(extents) <= 40  # some sessions are not told how long their flows are
    assert all(one[2] == 1 and list(one[3]) == [service] for one in extents) and set(lengths) == {6, 8}
    assert read.extents[label][0].services == {MADE.service_of(TCP, 443): [(lengths[0], 1)]}
    used = {token for first, end in said["tokens"][label] for token in range(first, end)}
    assert used == set(shard(*sessions).tokens.tolist())


@pytest.mark.parametrize(("ends", "known"), [(9, True), (5, False)])
def test_labels_whose_connections_are_left_open_are_not_made_to_close_them(ends: int, known: bool) -> None:
    sessions = [connection(5000 + i, "closed" if i < ends else "open") for i in range(10)]
    read = parse_conduct(conduct(shard(*sessions), MADE), MADE.size, MADE.service_names())
    assert read.habits(MADE.labels[0], True).reset_share == (0.0 if known else -1)


def test_what_it_says_of_captures_that_begin_in_the_middle_can_be_read() -> None:
    said = conduct(shard(*[connection(5000 + i, "late" if i else "closed") for i in range(10)]), MADE)
    assert parse_conduct(said, MADE.size, MADE.service_names()).habits(MADE.labels[0], True).reset_share == 1.0


@pytest.mark.parametrize(("gap_ns", "resolution_ns"), [(3_000, 1_000), (2_500, 1), (40_000_000, 1_000)])
def test_it_tells_the_resolution_of_times(gap_ns: int, resolution_ns: int) -> None:
    said = conduct(shard(connection(5000, "closed"), gap_ns=gap_ns), MADE)
    assert said["resolution_ns"] == resolution_ns == parse_conduct(said, MADE.size, MADE.service_names()).resolution_ns


def test_drawn_times_have_the_resolution_of_the_captures(tmp_path: Path) -> None:
    """Whatever gap is drawn, and wherever a session starts or is moved to."""
    folder = tiny_model(tmp_path / "tiny")
    said = {"resolution_ns": 1_000, "extents": {"web": [[100, None, 6]]}}
    (folder / "conduct.json").write_text(json.dumps(said))
    model = open_model(str(folder))
    session = model.session(SessionInfo(0, "web", {}, 1, T0 + 1), address_plan(), Limits(packets=200))
    random, times, late_ns = Stream(3), [], T0
    while not session.ended:
        decoder = session.decoder
        packet = session.advance(decoder.lo + random.below(decoder.hi - decoder.lo), late_ns)
        if packet is not None:
            times.append(packet.ts_ns)
            late_ns = packet.ts_ns + random.below(5_000)
    gaps = np.diff(times)
    assert len(times) > 10 and times[0] == T0 + 1_000 and not np.any(np.array(times) % 1_000) and (gaps >= 0).all()


def test_a_gap_stays_in_its_bin_whatever_the_resolution() -> None:
    source = FreshIdentities(address_plan(), 1, Stream(1))
    for resolution_ns in (1, 1_000, 1_000_000):
        decoder = Decoder(MADE, source, mtu=1500, habits=Habits(resolution_ns=resolution_ns))
        for member in range(v.IAT_BINS.count):
            lo, hi = v.IAT_BINS.edges[member : member + 2]
            gaps = [decoder.gap(member) for _ in range(5)]
            assert all(lo <= gap < hi for gap in gaps)
            if -(-lo // resolution_ns) * resolution_ns < hi:
                assert not any(gap % resolution_ns for gap in gaps)


def test_temperatures_of_the_model_and_of_who_asks(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    (folder / "conduct.json").write_text(json.dumps({"temperatures": {"who": 0.5, "iat": 0.8}}))
    model = open_model(str(folder))
    lo = {field.name: field.lo for field in model.vocabulary.fields}
    asked = model.temperatures(0.5, {"iat": 2.0})
    assert [asked.of(lo[name]) for name in ("who", "iat", "length")] == [0.25, 2.0, 0.5]


def test_temperatures_go_from_a_base_to_what_is_made_of_it(tmp_path: Path) -> None:
    assert load_temperatures(tmp_path) == {}
    (tmp_path / "conduct.json").write_text(json.dumps({"temperatures": {"who": 0.5}, "tokens": {"web": [[0, 10**9]]}}))
    assert load_temperatures(tmp_path) == {"who": 0.5}
    (tmp_path / "conduct.json").write_text('{"temperatures": {"who": -1}}')
    with pytest.raises(CheckpointError, match="the temperature of who"):
        load_temperatures(tmp_path)


@pytest.mark.parametrize(("crossed", "share"), [(40, 1.0), (30, 0.75), (0, 0.0)])
def test_it_tells_how_many_close_behind_a_reset(crossed: int, share: float) -> None:
    """The others leave it at the RST."""
    sessions = [connection(5000 + i, "crossed")[: None if i < crossed else -1] for i in range(40)]
    said = conduct(shard(*sessions), MADE)
    habits = parse_conduct(said, MADE.size, MADE.service_names()).habits(MADE.labels[0], True)
    assert habits.fin_behind_rst == share and habits.may_reset and habits.reset_share == 0


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"resolution_ns": 0}, "resolution_ns"),
        ({"resolution_ns": 1e3}, "resolution_ns"),
        ({"temperatures": {"whom": 1}}, "no field 'whom'"),
        ({"temperatures": {"who": -1}}, "temperature of who"),
        ({"temperatures": {"who": True}}, "temperature of who"),
        ({"temperatures": [1]}, "temperatures is no table"),
        ({"closes_from": {"web": 2}}, "closes_from of web is no number from 0 to 1"),
        ({"extents": {"web": [[9, 9]]}}, "no list of three numbers and a table"),
        ({"extents": {"web": [[9, 9, 1, [1]]]}}, "the services of an extent of web is no table"),
        ({"extents": {"web": [[9, 9, 1, {"gopher": []}]]}}, "'gopher', which is no service of this model"),
        ({"flow_tokens": {"web": {"gopher": [[], []]}}}, "flow_tokens of web tell of 'gopher'"),
        ({"flow_tokens": {"web": {"other": [[]]}}}, "are not of two sides"),
        ({"flow_tokens": {"web": {"other": [[], [[1, 1]]]}}}, r"is no \[from, to\]"),
        ({"weights": {"web": [[[-1, 1.0]], [], [], [], []]}}, r"weights of web: \[-1, 1.0\] is no \[token below"),
        ({"weights": {"web": [[[1, 0]], [], [], [], []]}}, r"is no \[token below \d+, 0.01 to 100\]"),
        ({"weights": {"web": [[], [], [], [], [[1, float("nan")]]]}}, "is no .token below"),
        ({"weights": {"web": [[], [[1, True]], [], [], []]}}, "is no .token below"),
        ({"weights": {"web": 1}}, "weights of web are no list of 5 stages"),
        ({"weights": {"web": [[], [], [], [], 3]}}, "weights of web are no list"),
        ({"flow_weights": {"web": {"gopher": [[], []]}}}, "flow_weights of web tell of 'gopher'"),
        ({"flow_weights": {"web": {"other": [[], [[MADE.size, 1]]]}}}, "is no .token below"),
        ({"extents": {"web": [[9, 9, 1, {"other": 1}]]}}, "flows to other of web are no list"),
        ({"extents": {"web": [[9, 9, 1, {"other": [[0, 1]]}]]}}, "is no .packets, flows"),
    ],
)
def test_what_is_wrong_is_named(said: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_conduct(said, MADE.size, MADE.service_names())


def drawable(session: Session) -> list[int]:
    """The tokens that the session would have drawn from."""
    ranges: list[int] = []
    masks: list[bytes] = []
    session.ask([], ranges, [], [], masks)
    lo, hi = ranges
    factors = np.frombuffer(masks[0], np.float32) if masks[0] else np.ones(hi - lo)
    return [lo + int(place) for place in np.flatnonzero(factors)]


@pytest.mark.parametrize("ordered", [None, 90.0])
def test_a_session_opens_the_flows_that_the_one_it_is_like_had(tmp_path: Path, ordered: float | None) -> None:
    """To each service as many, whatever is drawn of what may be."""
    folder = tiny_model(tmp_path / "tiny")
    vocabulary = open_model(str(folder)).vocabulary
    assert isinstance(vocabulary, Vocabulary)
    known, names = vocabulary.ports[0], vocabulary.service_names()
    ours = {f"{known}/tcp": [[20, 2], [36, 1]], f"{known}/udp": [[2, 1]], "1024-32767/tcp": [[8, 1]],
            "32768-65535/udp": [[3, 1]], "other": [[1, 1]]}  # fmt: skip
    (folder / "conduct.json").write_text(json.dumps({"resets": {}, "extents": {"web": [[90, None, 7, ours]]}}))
    model, random = open_model(str(folder)), Stream(3)
    for seed in range(20):
        conditions = {} if ordered is None else {"packets": ordered}
        session = model.session(SessionInfo(0, "web", conditions, seed, 0), address_plan())
        decoder, opened, lengths = session.decoder, [], []
        assert isinstance(decoder, Decoder)
        while not session.ended:
            legal = drawable(session)
            if decoder.field == v.PORT and decoder.owed:  # "any" may be of another range than it is taken for
                legal = [token for token in legal if token != decoder.base + v.PORT_CLASSES.index("any")]
            asked = decoder.field
            session.advance(legal[random.below(len(legal))])
            if asked == v.EXTENT:
                assert decoder.flow is not None
                opened.append(names[decoder.flow.service])
                lengths.append(decoder.flow.extent)
        assert Counter(opened) == {name: sum(flows for _, flows in known) for name, known in ours.items()}
        *told, last = lengths  # the last one has what is left, or the fewest packets there are
        assert set(told) <= {1, 2, 3, 8} | {*range(16, 24), *range(28, 44)} and last > 0


@pytest.mark.parametrize("closes_from", [0.0, 0.8])
def test_connections_are_closed_when_the_label_closes_them(tmp_path: Path, closes_from: float) -> None:
    """Before that no FIN, whatever is drawn, while anybody else has something to say."""
    folder = tiny_model(tmp_path / "tiny")
    said = {"resets": {}, "closes_from": {"web": closes_from}, "extents": {"web": [[400, None, 7]]}}
    (folder / "conduct.json").write_text(json.dumps(said))
    model, early, late = open_model(str(folder)), 0, 0
    busy = established = False
    for seed in range(10):
        session = model.session(SessionInfo(0, "web", {}, seed, 0), address_plan())
        decoder, random = session.decoder, Stream(seed)
        assert isinstance(decoder, Decoder)
        context = decoder.context
        while not session.ended:
            legal = drawable(session)
            if decoder.field == v.WHO:
                others = any(flow.owing and not flow.is_closing() for flow in context.flows)
                busy = others or context.flows_opened < context.extent[2]
            if decoder.field == v.TCP_SHAPE:
                assert decoder.flow is not None
                established = decoder.flow.may_close()
            packet = session.advance(legal[random.below(len(legal))])
            if packet is not None and established and parse(packet.data, packet.orig_len).flags & FIN:
                early += busy and context.packets <= 0.8 * context.extent[0]
                late += 1
    assert late and (early == 0) == (closes_from > 0)


def test_services_of_ports_whichever_ports_are_known() -> None:
    vocabulary = Vocabulary(("web",), (), (), (), (1024, 32768, 65535, 1))
    names = vocabulary.service_names()
    found = [names[service] if service >= 0 else "" for service in vocabulary.services_of_ports(UDP)]
    high, middle, low = "32768-65535/udp", "1024-32767/udp", "0-1023/udp"
    assert found == [high, middle, high, low, "", "1024/udp", "32768/udp", "65535/udp", "1/udp"]
    assert names[vocabulary.service_of(TCP, 1025)] == "1024-32767/tcp" and vocabulary.service_of(TCP, 1024) == 1


def test_services_in_proportion() -> None:
    services = {7: 20, 8: 20, 1: 1, 2: 1, 3: 1}
    for flows in (-1, 0, 1, 4, 5, 6, 43, 44, 430):
        owed = in_proportion(services, flows)
        assert sum(owed.values()) == max(0, flows) and all(count > 0 for count in owed.values())
        assert len(owed) == min(5, max(0, flows))
    assert in_proportion(services, 43) == services and in_proportion({}, 5) == {}
    assert in_proportion(services, 86)[7] == 40


def test_a_repertoire_leaves_what_lies_between_the_first_and_the_last_token_that_a_label_says() -> None:
    repertoire = Repertoire(10, [(1, 3), (5, 6)])
    for _ in range(2):  # made, then remembered
        lo, hi, factors = repertoire.within(0, 8)
        assert (lo, hi) == (1, 6) and np.frombuffer(factors, np.float32).tolist() == [1, 1, 0, 0, 1]
        lo, hi, factors = repertoire.within(2, 10)
        assert (lo, hi) == (2, 6) and np.frombuffer(factors, np.float32).tolist() == [1, 0, 0, 1]
        assert repertoire.within(0, 5) == (1, 3, b"")  # all of them
        assert repertoire.within(6, 10) == (6, 10, b"")  # none of them
        assert repertoire.within(5, 6) == (5, 6, b"")
    assert repertoire.knows(4, 6) and not repertoire.knows(6, 10) and not repertoire.knows(3, 5)


def test_a_repertoires_weights_are_factors() -> None:
    label = Repertoire(10, [(1, 3), (5, 6)])
    assert label.at(2000) is label
    label.add_flow(4, 1, [(2, 3)], [(2, 4.0)])
    for stage in range(len(v.STAGES) + 1):
        label.add_stage([(2, 0.5), (4, 9.0), (7, 3.0)] if stage == 2 else [])
    assert [label.at(packets).within(1, 3)[2] == b"" for packets in (63, 64, 255, 256)] == [True, False, False, True]
    repertoire = label.at(64)
    lo, hi, factors = repertoire.within(0, 8)
    assert (lo, hi) == (1, 6) and np.frombuffer(factors, np.float32).tolist() == [1, 0.5, 0, 0, 1]
    assert repertoire.within(0, 2) == (1, 2, b"")
    lo, hi, factors = label.of_flow(4, 1).within(0, 8)
    assert (lo, hi) == (2, 3) and np.frombuffer(factors, np.float32).tolist() == [4]
    lo, hi, factors = repertoire.among([0, 2, 4, 5])  # of these two are used
    assert (lo, hi) == (2, 6) and np.frombuffer(factors, np.float32).tolist() == [0.5, 0, 0, 1]
    lo, hi, factors = repertoire.among([6, 8])  # none of these
    assert (lo, hi) == (6, 9) and np.frombuffer(factors, np.float32).tolist() == [1, 0, 1]
    assert repertoire.among([1]) == (1, 2, b"")


def test_what_a_side_of_a_flow_says(tmp_path: Path) -> None:
    """Read off training, and what is drawn for that side keeps to it; what it never said is the label's."""
    label, service = MADE.labels[0], MADE.service_of(TCP, 443)
    said = conduct(shard(*[connection(5000 + i, "closed") for i in range(10)]), MADE)
    sides = parse_conduct(said, MADE.size, MADE.service_names()).flow_tokens[label][service]
    up, down = ({token for first, end in side for token in range(first, end)} for side in sides)
    shapes = MADE.fields[v.TCP_SHAPE]
    syn, syn_ack = (range(shapes.lo + 36 * flags, shapes.lo + 36 * flags + 36) for flags in (0, v.FLAGS_SYN_ACK))
    assert up & {*syn} and not down & {*syn} and down & {*syn_ack} and not up & {*syn_ack}
    whole = Repertoire(10, [(1, 3), (5, 6)])
    whole.add_flow(4, 1, [(2, 3)])
    part = whole.of_flow(4, 1)
    assert part.within(0, 8) == (2, 3, b"") and part.within(5, 8) == whole.within(5, 8) == (5, 6, b"")
    assert whole.of_flow(4, 0) is whole and part.within(6, 10) == (6, 10, b"")


def test_a_label_that_never_told_extents_is_not_asked_for_them(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny")
    vocabulary = open_model(str(folder)).vocabulary
    assert isinstance(vocabulary, Vocabulary)
    told = vocabulary.fields[v.EXTENT].lo
    runs = {"web": [[0, told], [told + v.EXTENT_UNTOLD, vocabulary.size]], "dns": [[0, vocabulary.size]]}
    (folder / "conduct.json").write_text(json.dumps({"tokens": runs}))
    model = open_model(str(folder))
    for label, untold in (("web", True), ("dns", False)):
        decoder = model.session(SessionInfo(0, label, {}, 1, 0), address_plan()).decoder
        assert isinstance(decoder, Decoder) and decoder.habits.untold is untold


@pytest.mark.parametrize("shortest", [1, 27])
@pytest.mark.parametrize("ordered", [1, 7, 200])
def test_an_order_by_packets_is_kept_to(ordered: int, shortest: int) -> None:
    """Whatever is drawn: as many flows as were told, and all packets had, give or take how they close."""
    flows = min(ordered, 5)
    for seed in range(10):
        stream, identities = Stream(seed), FreshIdentities(address_plan(), seed, Stream(seed))
        habits = Habits(0.0, shortest=shortest)
        decoder = Decoder(MADE, identities, mtu=1500, extent=(ordered, -1, flows), habits=habits)
        packets, told = 0, []
        while not decoder.ended:
            asked = decoder.field
            packets += decoder.feed(decoder.lo + stream.below(decoder.hi - decoder.lo)) is not None
            if asked == v.EXTENT:
                assert decoder.flow is not None
                told.append(decoder.flow.extent)
        beyond = MOST_OVERTIME * flows
        assert len(told) == flows and packets <= ordered + beyond + flows * shortest and min(told) >= 1
        assert sum(told) >= ordered - (beyond if ordered == 200 else 0)  # no connection is that short to be closed late
