"""TCP conversations written as lines, for tests.

A trace is a list of packets ``side flags seq ack [length] [options]``: `A` is the originator, `B` the responder.
Sequence numbers are relative to 1000 for A and 2000 for B, so ``A S 0 0`` is the SYN. Options are names of OPTIONS, or
``ts=5`` (a timestamp's value) and ``window=100``.
"""

from netssmd.packet.wire import ACK, FIN, IPV4, PSH, RST, SYN, TCP, Headers

FLAGS = {"S": SYN, "F": FIN, "R": RST, "P": PSH, ".": ACK, "0": 0}
OPTIONS = {
    "mss": bytes((2, 4, 5, 180)), "wscale": bytes((3, 3, 7, 1)), "sackok": bytes((4, 2, 1, 1)),
    "ts": bytes((1, 1, 8, 10)) + bytes(8), "sack": bytes((1, 1, 5, 10)) + bytes(8), "bad": bytes((8, 0, 0, 0)),
}  # fmt: skip

HELLO = ["A S 0 0", "B S. 0 1", "A . 1 1"]
TALK = [*HELLO, "A P. 1 1 100", "B . 1 101", "B P. 1 101 1000", "A . 101 1001"]
BYE = ["A F. 101 1001", "B F. 1001 102", "A . 102 1002"]
STAMPED = ["A S 0 0 0 mss,ts", "B S. 0 1 0 mss,ts", "A . 1 1 0 ts"]
SCALED = ["A S 0 0 0 wscale", "B S. 0 1 0 wscale", "A . 1 1 0 window=10"]
SACKING = ["A S 0 0 0 mss,sackok", "B S. 0 1 0 mss,sackok", "A . 1 1"]


def headers(line: str, a_port: int = 40000, zero: int = 0) -> Headers:
    side, flags, seq, ack, *more = line.split()
    length, options = [*more, *("0", "")[len(more) :]]
    h = Headers()
    h.link = bytes(12) + b"\x08\x00"
    h.version, h.transport, h.protocol = IPV4, TCP, TCP
    a, b = (bytes((198, 18, 0, 1)), a_port, 1000 + zero), (bytes((198, 18, 0, 2)), 80, 2000 + zero)
    mine, theirs = (a, b) if side == "A" else (b, a)
    h.src, h.sport, h.dst, h.dport = mine[0], mine[1], theirs[0], theirs[1]
    h.seq, h.ack = (int(seq) + mine[2]) & 0xFFFFFFFF, (int(ack) + theirs[2]) & 0xFFFFFFFF
    h.flags = sum(FLAGS[flag] for flag in flags)
    h.window = 65535
    h.payload_len = int(length)
    h.body = bytes(h.payload_len)
    for name, _, value in (option.partition("=") for option in options.split(",") if option):
        if name == "window":
            h.window = int(value)
        elif value:
            h.tcp_options += OPTIONS[name][:4] + int(value).to_bytes(4, "big") + bytes(4)
        else:
            h.tcp_options += OPTIONS[name]
    return h
