"""The traffic mix: pure sessions, weights, conditions; arrivals in both manners; the rate cap's neighbourhood."""

import pytest

from netssmd.codec.context import NO_EXTENT, UNKNOWN
from netssmd.engine.mix import SECOND, Arrivals, TrafficMix, default_mix, draw_extent
from netssmd.engine.session import SessionInfo
from netssmd.model.conduct import Extent


def test_session_n_is_the_same_whenever_it_starts() -> None:
    mix = default_mix(["web", "dns", "chat"], seed=4)
    first, later = mix.session(17, 0), mix.session(17, 999)
    assert (first.label, first.conditions, first.seed) == (later.label, later.conditions, later.seed)
    assert default_mix(["web", "dns", "chat"], seed=5).session(17, 0) != first


def test_weights_and_ranges_hold() -> None:
    mix = TrafficMix(
        {"web": 3.0, "dns": 1.0, "off": 0.0}, {"rtt_ms": (5, 120), "loss_pct": (0, 2), "rate_mbit": (50, 50)}, 1
    )
    sessions = [mix.session(n, 0) for n in range(4000)]
    assert {s.label for s in sessions} == {"web", "dns"}
    assert abs(sum(s.label == "web" for s in sessions) / 4000 - 0.75) < 0.03
    assert all(5 <= s.conditions["rtt_ms"] <= 120 and 0 <= s.conditions["loss_pct"] <= 2 for s in sessions)
    assert {s.conditions["rate_mbit"] for s in sessions} == {50}


def test_concurrency_is_kept() -> None:
    arrivals = Arrivals(4, 0, seed=1, start_ns=0, ramp_ns=4_000)
    starts, live = [], 0
    for now in range(0, 10_000, 100):
        while arrivals.take(now, live):
            starts.append(now)
            live += 1
        if now == 8_000:
            live -= 1
    assert starts == [0, 1_000, 2_000, 3_000, 8_100]
    assert arrivals.next_ns(4) is None


def test_poisson_arrivals_keep_their_mean_and_the_cap_defers() -> None:
    arrivals = Arrivals(10_000, SECOND, seed=1, start_ns=0)
    now = 0
    for live in range(5_000):
        now = max(now, arrivals.next_ns(live) or 0)
        assert arrivals.take(now, live)
    assert abs(now / SECOND / 5_000 - 1) < 0.05
    capped = Arrivals(1, SECOND, seed=1, start_ns=0)
    assert capped.take(0, 0)
    assert not capped.take(100 * SECOND, 1) and not capped.take(101 * SECOND, 1) and capped.deferred == 1
    assert capped.take(102 * SECOND, 0)


def test_a_total_ends_the_arrivals() -> None:
    arrivals = Arrivals(2, 0, seed=1, start_ns=0, total=3)
    assert [arrivals.take(5, 0) for _ in range(4)] == [True, True, True, False] and arrivals.exhausted


def test_an_extent_is_like_one_of_its_labels_sessions() -> None:
    extents = {"web": [Extent(100, 2_000, 7), Extent(900, UNKNOWN, UNKNOWN)]}

    def drawn(
        seed: int, label: str = "web", prompted: int = 0, prompted_flows: int = 0, **conditions: float
    ) -> tuple[int, int, int]:
        return draw_extent(SessionInfo(0, label, conditions, seed, 0), extents, (prompted, prompted_flows)).extent

    many = {drawn(seed) for seed in range(200)}
    assert many == {drawn(seed) for seed in range(200)}
    short = {extent for extent in many if extent[1] != UNKNOWN}
    assert 10 < len(short) < 200 and all(extent[1:] == (UNKNOWN, UNKNOWN) for extent in many - short)
    packets, durations_ns, flows = zip(*short, strict=True)
    assert 85 <= min(packets) <= 100 <= max(packets) <= 120 and set(flows) == {7}
    assert 1_400_000_000 < min(durations_ns) < max(durations_ns) < 2_900_000_000
    assert all(drawn(seed, prompted=500)[0] > 500 for seed in range(50))
    assert drawn(1, "dns") == drawn(1, prompted=2_000) == drawn(1, packets=0.0) == NO_EXTENT
    assert all(drawn(seed, prompted=3, prompted_flows=6)[2] == 7 for seed in range(50) if drawn(seed)[1] != UNKNOWN)
    assert drawn(1, packets=12.0) == (12, UNKNOWN, 7) and drawn(1, packets=3.0) == (3, UNKNOWN, 3)
    assert drawn(1, "dns", packets=12.0) == (12, UNKNOWN, UNKNOWN)


@pytest.mark.parametrize(
    ("sessions", "least", "most"),
    [
        ([(100, 50), (200, 100), (300, 150)], 350, 700),  # queries: as many as there are packets
        ([(100, 5), (900, 5), (3_000, 5)], 5, 5),  # a film: the same flows, however long
    ],
)
def test_an_order_beyond_what_training_saw_has_the_flows_of_its_kind(
    sessions: list[tuple[int, int]], least: int, most: int
) -> None:
    extents = {"x": [Extent(packets, UNKNOWN, flows) for packets, flows in sessions]}
    for seed in range(20):
        info = SessionInfo(0, "x", {"packets": 1_000.0}, seed, 0)
        packets, _, flows = draw_extent(info, extents).extent
        assert packets == 1_000 and least <= flows <= most
        assert draw_extent(info, extents, shortest=400).extent[2] == 2
