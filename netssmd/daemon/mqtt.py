"""The daemon as a node of a fleet: commands in, replies, status and events out, by MQTT 5.

    connect -> status (retained), subscriptions -> requests, heartbeat, events  ... until the broker goes
       ^------------------- wait 1, 2, 4 ... 60 s, with some chance in it <------------------'

Generation never waits for any of this: it is one task of the control loop, its queues are bounded, and what cannot be
told is forgotten. The heartbeat is the retained status, published with acknowledgement: no acknowledgement in 10 s
means that the connection is dead, however alive TCP thinks it is.

Start requests for anyone come by shared subscription (MQTT 5, section 4.8.2): the broker gives each to one node. A node
subscribes only while it has room; one that comes when the room has just gone, or more than fit, is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from netssmd.daemon import broker, topics
from netssmd.daemon.config import Mqtt
from netssmd.daemon.control import Reply, Request, failure, obey, parse_request
from netssmd.daemon.retarget import room
from netssmd.errors import NetssmdError, UsageError

if TYPE_CHECKING:
    from netssmd.daemon.service import Service

log = logging.getLogger("netssmd")
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
ROOM_SECONDS = 0.25  # between two looks whether there is room
PASS_ON_SECONDS = 0.25  # before a request goes to the next node
FAREWELL_SECONDS = 1.5
CONNECTED, WAITING = "connected", "waiting"


@dataclass(slots=True)
class BrokerState:
    """What the status says of the broker. `error` is why it is not connected."""

    host: str
    port: int
    node: str
    group: str
    state: str = WAITING
    error: str = ""
    connections: int = 0
    published: int = 0
    requests: int = 0


class Node:
    """One daemon on one broker. `run` until it is cancelled. Raises ConfigError from the start where the section
    cannot work."""

    def __init__(self, service: Service, settings: Mqtt) -> None:
        broker.check(settings)
        self.service = service
        self.settings = settings
        node = broker.node_name(settings)
        self.state = BrokerState(settings.host, broker.port_of(settings), node, settings.group)
        self._prefix = settings.prefix
        self._status_topic = topics.status(settings.prefix, node)
        self._beat = asyncio.Event()
        self._passing: set[asyncio.Task[None]] = set()
        self._working = False  # subscribed to work
        self._heard: list[str] = []  # of the library, about the connection

    async def run(self) -> None:
        """Connect, serve, and again, until the daemon is over."""
        wait_seconds = FIRST_WAIT_SECONDS
        while not self.service.board.stop.is_set():
            begun = time.monotonic()
            try:
                await self._connection()
            except (aiomqtt.MqttError, OSError, TimeoutError, NetssmdError) as error:
                said = broker.why(error, self._heard)
                if self.state.state == CONNECTED or not self.state.error:
                    log.warning("mqtt: %s:%d: %s; trying again", self.state.host, self.state.port, said)
                self.state.error = said[:200]
            self.state.state = WAITING
            if time.monotonic() - begun > LONGEST_WAIT_SECONDS:
                wait_seconds = FIRST_WAIT_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds * random.uniform(0.75, 1.25)):
                    await self.service.over()
            wait_seconds = min(wait_seconds * 2, LONGEST_WAIT_SECONDS)

    def _offline(self) -> bytes:
        return json.dumps({"node": self.state.node, "group": self.state.group, "state": "offline"}).encode()

    async def _connection(self) -> None:
        """One connection, from its beginning to its end; raises what ended it."""
        will = aiomqtt.Will(self._status_topic, self._offline(), qos=1, retain=True)
        self._heard.clear()
        async with broker.client(self.settings, self._heard, f"{self._prefix}-{self.state.node}", will) as client:
            await self._publish_status(client)
            for topic in self._command_topics():
                await client.subscribe(topic, qos=1)
            self._working = False
            self.state.state, self.state.error = CONNECTED, ""
            self.state.connections += 1
            log.info("mqtt: %s:%d: connected as node %s", self.state.host, self.state.port, self.state.node)
            works = (self._listen(client), self._heartbeat(client), self._tell_events(client), self._watch_room(client))
            tasks = [asyncio.ensure_future(work) for work in works]
            over = asyncio.ensure_future(self.service.over())
            try:
                done, _ = await asyncio.wait((*tasks, over), return_when=asyncio.FIRST_COMPLETED)
                if over not in done:
                    for task in done:
                        task.result()
            finally:
                client.timeout = FAREWELL_SECONDS  # a broker that hangs does not hold up the end
                await _end((*tasks, *self._passing, over))
            with contextlib.suppress(aiomqtt.MqttError):  # a clean goodbye does not send the will
                await client.publish(self._status_topic, self._offline(), qos=1, retain=True)

    def _command_topics(self) -> list[str]:
        prefix, group = self._prefix, self.settings.group
        mine = [topics.command_of_node(prefix, self.state.node), topics.command_of_all(prefix)]
        return [*mine, topics.command_of_group(prefix, group)] if group else mine

    def _work_topics(self) -> list[str]:
        return list(dict.fromkeys((topics.work(self._prefix), topics.work(self._prefix, self.settings.group))))

    # --- out ---

    async def _publish_status(self, client: aiomqtt.Client) -> None:
        status = {"node": self.state.node, "group": self.state.group, **self.service.status().json()}
        await client.publish(self._status_topic, json.dumps(status).encode(), qos=1, retain=True)
        self.state.published += 1

    async def _heartbeat(self, client: aiomqtt.Client) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.settings.status_interval / 1e9):
                    await self._beat.wait()
            self._beat.clear()
            await self._publish_status(client)

    async def _tell_events(self, client: aiomqtt.Client) -> None:
        told = self.settings.events
        with self.service.events.subscribe(*dict.fromkeys((*told, "paused", "resumed", "stopping"))) as events:
            async for event in events:
                if event.kind in ("paused", "resumed", "stopping"):
                    self._beat.set()
                if event.kind in told:
                    payload = {"node": self.state.node, **event.json()}
                    topic = topics.event(self._prefix, self.state.node, event.kind)
                    await client.publish(topic, json.dumps(payload, default=str).encode())
                    self.state.published += 1

    async def _watch_room(self, client: aiomqtt.Client) -> None:
        """Be subscribed to work exactly while there is room for it."""
        while True:
            wanted = self._room() > 0
            if wanted != self._working:
                for topic in self._work_topics():
                    if wanted:
                        await client.subscribe(topics.SHARE + topic, qos=1)
                    else:
                        await client.unsubscribe(topics.SHARE + topic)
                self._working = wanted
                self._beat.set()
            await asyncio.sleep(ROOM_SECONDS)

    def _room(self) -> int:
        return 0 if self.service.paused or self.service.board.stop.is_set() else room(self.service)

    # --- in ---

    async def _listen(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if not message.retain:  # a retained request would be obeyed again at each connection
                self.state.requests += 1
                await self._hear(client, message)

    async def _hear(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        topic = str(message.topic)
        payload = message.payload if isinstance(message.payload, bytes) else b""
        try:
            request = parse_request(payload)
            if topic in self._work_topics():
                reply = await self._work(client, message, request)
                if reply is None:
                    return
            else:
                reply = await obey(self.service, request)
        except UsageError as error:
            reply = failure(error)
        await self._reply(client, message, reply)

    async def _work(self, client: aiomqtt.Client, message: aiomqtt.Message, request: Request) -> Reply | None:
        """Take what there is room for, and pass on the rest. None where nothing was taken."""
        if request.command.name != "start":
            raise UsageError(f"only start is work for anyone; send {request.command.name} to a node, a group or all")
        wanted, fit = request.arguments["count"], self._room()
        if fit > 0:
            reply = await obey(self.service, Request(request.command, request.arguments, request.id))
            taken = reply["result"]["started"] if reply["ok"] else 0
            if not reply["ok"]:
                return reply  # wrong for every node
        else:
            reply, taken = None, 0
        if wanted > taken and not self._pass_on(client, message, wanted - taken, taken):
            reply = reply or failure(f"no node has room for {wanted} more")
        return reply

    def _pass_on(self, client: aiomqtt.Client, message: aiomqtt.Message, count: int, taken: int) -> bool:
        """Give the rest of a start request back to the broker. False when it has gone round often enough."""
        hops = int(dict(getattr(message.properties, "UserProperty", [])).get(topics.HOPS, 0)) + (taken == 0)
        if hops > topics.MOST_HOPS:
            return False
        tree = json.loads(message.payload if isinstance(message.payload, bytes) else b"{}")
        tree["arguments"]["count"] = count
        if tree["arguments"].get("seed"):
            tree["arguments"]["seed"] += 1  # other sessions than the ones taken here
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [(topics.HOPS, str(hops))]
        for name in ("ResponseTopic", "CorrelationData"):
            if hasattr(message.properties, name):
                setattr(properties, name, getattr(message.properties, name))

        async def later() -> None:
            await asyncio.sleep(PASS_ON_SECONDS)
            await client.publish(str(message.topic), json.dumps(tree).encode(), qos=1, properties=properties)

        task = asyncio.ensure_future(later())
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        return True

    async def _reply(self, client: aiomqtt.Client, message: aiomqtt.Message, reply: Reply) -> None:
        target = getattr(message.properties, "ResponseTopic", None)
        if not topics.may_reply_to(self._prefix, target):
            return
        properties = Properties(PacketTypes.PUBLISH)
        ticket = getattr(message.properties, "CorrelationData", None)
        if ticket is not None:
            properties.CorrelationData = ticket
        payload: dict[str, Any] = {"node": self.state.node, **reply}
        await client.publish(str(target), json.dumps(payload, default=str).encode(), qos=1, properties=properties)
        self.state.published += 1


async def _end(tasks: Iterable[asyncio.Future[None]]) -> None:
    """Cancel until all have ended: `asyncio.wait_for` of Python 3.11, which aiomqtt uses, may swallow a
    cancellation."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.2)
