"""The other end of a fleet: `netssmd ctl --broker` and `netssmd top --broker` ask nodes through the broker.

Requests carry a response topic and correlation data; who answers is known from the retained status of each node. Plain
functions that connect, ask and come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from netssmd.daemon import broker, topics
from netssmd.daemon.config import Mqtt, load
from netssmd.errors import NetssmdError, UsageError

QUIET_SECONDS = 0.3  # without another retained status, all have come
Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request goes: `topic` behind the prefix. `anyone`: as many nodes as have room."""

    topic: Callable[[str], str]
    shown: str
    node: str = ""
    group: str = ""
    anyone: bool = False

    def meant(self, status: Tree) -> bool:
        """Whether a node with this status is to answer."""
        if status["state"] == "offline":
            return False
        return status["node"] == self.node if self.node else not self.group or status["group"] == self.group


def settings(config: Path | None, host: str, **others: str) -> Mqtt:
    """From a configuration file's [mqtt] section, or HOST[:PORT] and options; the latter win."""
    found = load(config).mqtt if config else Mqtt()
    if host:
        name, _, port = host.rpartition(":") if host.count(":") == 1 else (host, "", "")
        if port and not port.isdigit():
            raise UsageError(f"--broker {host}: write HOST or HOST:PORT")
        found = msgspec.structs.replace(found, host=name, port=int(port or 0))
    if others.get("ca_file"):
        found = msgspec.structs.replace(found, tls=True)
    found = msgspec.structs.replace(found, **{key: value for key, value in others.items() if value})
    if not found.host:
        raise UsageError("no broker: write --broker HOST, or a configuration file whose mqtt.host is set")
    return found


def address(command: str, node: str, group: str, everyone: bool) -> Address:
    """Where a command goes. Raises UsageError where that is not said; `start` may go to anyone."""
    if bool(node) + bool(group) + everyone > 1:
        raise UsageError("choose one of --node, --group, --all")
    if node:
        return Address(lambda p: topics.command_of_node(p, node), f"node {node}", node=node)
    if everyone:
        return Address(topics.command_of_all, "all nodes")
    if command == "start":
        where = f"any node of group {group}" if group else "any node"
        return Address(lambda p: topics.work(p, group), where, group=group, anyone=True)
    if group:
        return Address(lambda p: topics.command_of_group(p, group), f"group {group}", group=group)
    raise UsageError(f"{command}: say to whom: --node NAME, --group NAME or --all")


def fleet_status(settings: Mqtt, timeout: float) -> list[Tree]:
    """The last status of every node, by name."""
    return asyncio.run(_guarded(settings, _fleet_status, timeout))


def ask(settings: Mqtt, to: Address, command: str, arguments: Tree, timeout: float) -> list[Tree]:
    """The replies to a command: of all nodes that it is for, or until the time is over."""

    async def work(client: Any, prefix: str, seconds: float) -> list[Tree]:
        return await _ask(client, prefix, to, command, arguments, seconds)

    return asyncio.run(_guarded(settings, work, timeout))


def watch(settings: Mqtt, kinds: list[str], node: str) -> Iterator[Tree]:
    """Events of a node, or of all, as they come."""
    for kind in kinds:
        if kind not in settings.events and not topics.NAME.fullmatch(kind):
            raise UsageError(f"{kind!r} is no event")
    wanted = [topics.event(settings.prefix, node or "+", kind) for kind in kinds or ["+"]]
    runner = asyncio.Runner()
    with runner:
        stream = _messages(settings, wanted)
        try:
            while True:
                yield runner.run(_next(stream))
        except StopAsyncIteration:
            return
        finally:
            runner.run(_close(stream))


async def _next(stream: AsyncGenerator[Tree, None]) -> Tree:
    return await anext(stream)


async def _close(stream: AsyncGenerator[Tree, None]) -> None:
    await stream.aclose()


async def _messages(settings: Mqtt, wanted: list[str]) -> AsyncGenerator[Tree, None]:
    heard: list[str] = []
    with _plain_errors(settings, heard):
        async with broker.client(settings, heard) as client:
            for topic in wanted:
                await client.subscribe(topic)
            async for message in client.messages:
                tree = _tree(message.payload)
                if tree is not None:
                    yield tree


def _tree(payload: object) -> Tree | None:
    with contextlib.suppress(ValueError):
        tree = json.loads(payload) if isinstance(payload, bytes) else None
        return tree if isinstance(tree, dict) else None
    return None


@contextlib.contextmanager
def _plain_errors(settings: Mqtt, heard: list[str]) -> Iterator[None]:
    """What connecting and asking raise, as one line that names the broker."""
    import aiomqtt

    try:
        yield
    except (aiomqtt.MqttError, OSError) as error:
        raise NetssmdError(f"broker {settings.host}:{broker.port_of(settings)}: {broker.why(error, heard)}") from None


async def _guarded(settings: Mqtt, work: Callable[..., Any], timeout: float) -> Any:
    heard: list[str] = []
    client = broker.client(settings, heard)
    with _plain_errors(settings, heard):
        async with client:
            return await work(client, settings.prefix, timeout)


async def _until(client: Any, end: float, quiet: float = 0.0) -> AsyncIterator[Any]:
    """Messages until the time `end` (monotonic), or until none has come for `quiet` seconds."""
    messages = client.messages
    while True:
        left = end - time.monotonic()
        try:
            async with asyncio.timeout(min(left, quiet) if quiet else left):
                message = await anext(messages)
        except TimeoutError:
            return
        yield message


async def _fleet_status(client: Any, prefix: str, seconds: float) -> list[Tree]:
    topic = topics.status(prefix, "+")
    await client.subscribe(topic, qos=1)
    found: dict[str, Tree] = {}
    async for message in _until(client, time.monotonic() + seconds, QUIET_SECONDS):
        tree = _tree(message.payload)
        if tree is not None and isinstance(tree.get("node"), str):
            found[tree["node"]] = tree
    await client.unsubscribe(topic)
    return [found[name] for name in sorted(found)]


async def _ask(client: Any, prefix: str, to: Address, command: str, arguments: Tree, seconds: float) -> list[Tree]:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    expected = [node["node"] for node in await _fleet_status(client, prefix, seconds) if to.meant(node)]
    target, ticket = topics.replies(prefix) + secrets.token_hex(8), secrets.token_bytes(8)
    await client.subscribe(target, qos=1)
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData = target, ticket
    request = json.dumps({"command": command, "arguments": arguments}).encode()
    await client.publish(to.topic(prefix), request, qos=1, properties=properties)
    replies: list[Tree] = []
    async for message in _until(client, time.monotonic() + seconds):
        if getattr(message.properties, "CorrelationData", None) != ticket or str(message.topic) != target:
            continue
        tree = _tree(message.payload)
        if tree is not None:
            replies.append(tree)
        if _complete(replies, expected, to, arguments):
            break
    return replies


def _complete(replies: list[Tree], expected: list[str], to: Address, arguments: Tree) -> bool:
    if to.anyone:
        started = sum(reply["result"]["started"] for reply in replies if reply.get("ok"))
        return started >= arguments.get("count", 1) or not all(reply.get("ok") for reply in replies)
    return {reply.get("node") for reply in replies} >= set(expected) and bool(replies)
