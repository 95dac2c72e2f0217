"""The fan-out: any thread tells, nobody waits, the slow lose the oldest and are told so."""

from __future__ import annotations

import asyncio
import threading

import pytest

from netssmd.daemon import events
from netssmd.daemon.events import Events


def test_events_of_many_threads_reach_every_subscriber_in_order() -> None:
    async def scenario() -> None:
        fan = Events()
        fan.emit("fault", fault="before anyone listens", text="")
        with fan.subscribe("fault") as some, fan.subscribe() as everything:

            def work(name: int) -> None:
                for i in range(100):
                    fan.emit("fault", fault=name, text=i)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            fan.emit("stopping")
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            fan.close()
            told = [event async for event in everything]
            assert len(told) == 401 and told[0].json() == {"event": "stopping", "ts_ns": told[0].ts_ns}
            for n in range(4):
                assert [e.fields["text"] for e in told if e.fields.get("fault") == n] == list(range(100))
            assert len([event async for event in some]) == 400
        assert fan.emitted == {"fault": 401, "stopping": 1} and fan.lost == 0
        assert not fan.listened("fault")

    asyncio.run(scenario())


def test_a_slow_subscriber_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUED", 10)

    async def scenario() -> None:
        fan = Events()
        with fan.subscribe("fault") as slow:
            for i in range(25):
                fan.emit("fault", fault="x", text=i)
            assert fan.lost == 15
            assert (await anext(slow)).fields["text"] == 15
            waiting = asyncio.ensure_future(anext(slow))
            assert (await waiting).fields["text"] == 16

    asyncio.run(scenario())


def test_a_reader_that_waits_is_woken_from_another_thread() -> None:
    async def scenario() -> None:
        fan = Events()
        with fan.subscribe() as listening:
            waiting = asyncio.ensure_future(anext(listening))
            await asyncio.sleep(0)
            await asyncio.to_thread(fan.emit, "slice-closed", capture="a.pcap")
            assert (await asyncio.wait_for(waiting, 5)).fields == {"capture": "a.pcap"}

    asyncio.run(scenario())


def test_only_kinds_of_the_table() -> None:
    with pytest.raises(ValueError, match="EVENTS"):
        Events().emit("sliced")
