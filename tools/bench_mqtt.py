"""How long a request and its reply take over MQTT, with TCP_NODELAY and without it: on the broker, on the clients.

    python tools/bench_mqtt.py [--rounds 40]

Starts a mosquitto of its own on loopback for each setting; two clients of aiomqtt, one that asks and one that answers,
quality of service 1. Prints median and worst round trip in milliseconds, a line for each setting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import aiomqtt

NODELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]


def client(port: int, nodelay: bool) -> aiomqtt.Client:
    """As netssmd's, but for the option."""
    version = aiomqtt.ProtocolVersion.V5
    return aiomqtt.Client("127.0.0.1", port, protocol=version, socket_options=NODELAY if nodelay else [])


async def round_trips(port: int, nodelay: bool, rounds: int) -> list[float]:
    """Milliseconds of each."""
    taken: list[float] = []
    async with client(port, nodelay) as asks, client(port, nodelay) as answers:
        await asks.subscribe("reply", qos=1)
        await answers.subscribe("command", qos=1)

        async def answer() -> None:
            with contextlib.suppress(aiomqtt.MqttError):  # the end of the connection
                async for message in answers.messages:
                    await answers.publish("reply", message.payload, qos=1)

        task = asyncio.create_task(answer())
        for _ in range(rounds):
            begun = time.monotonic()
            await asks.publish("command", b"x", qos=1)
            await anext(asks.messages)
            taken.append((time.monotonic() - begun) * 1e3)
        task.cancel()
        await asyncio.wait((task,), timeout=1)
    return taken


def measure(broker_nodelay: bool, client_nodelay: bool, rounds: int) -> list[float]:
    """On a broker of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mosquitto.conf"
        file.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            f"set_tcp_nodelay {str(broker_nodelay).lower()}\n"
        )
        broker = subprocess.Popen(["mosquitto", "-c", file], stderr=subprocess.DEVNULL)
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            return asyncio.run(round_trips(port, client_nodelay, rounds))
        finally:
            broker.kill()
            broker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    print("broker   clients  median   worst   (ms)")
    for broker in (False, True):
        for clients in (False, True):
            taken = measure(broker, clients, rounds)
            words = ["nodelay" if on else "delay" for on in (broker, clients)]
            print(f"{words[0]:8} {words[1]:8} {statistics.median(taken):6.2f} {max(taken):7.2f}")


if __name__ == "__main__":
    main()
