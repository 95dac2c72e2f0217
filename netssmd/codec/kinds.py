"""What a flow's first payload each way is: one table of signatures.

In: the first captured bytes of a payload and the transport. Out: the number of its kind, 0 if nothing matches. A kind
is behaviour and becomes a token; the bytes themselves do not. A signature is one row: name, transport, test.

Sources: TLS RFC 8446, DTLS RFC 9147, DNS RFC 1035, HTTP RFC 9112 / 9113, SSH RFC 4253, STUN RFC 8489, QUIC RFC 9000,
RTP RFC 3550, NTP RFC 5905, SIP RFC 3261, MQTT 3.1.1 / 5, RESP (Redis), FTP RFC 959, SMTP RFC 5321, DHCP RFC 2131.
"""

from __future__ import annotations

from typing import Final

_TCP: Final = 6
_UDP: Final = 17


def _text_kinds() -> list[tuple[str, bytes]]:
    rows: list[tuple[str, bytes]] = [
        ("http-get", b"GET "),
        ("http-post", b"POST "),
        ("http-head", b"HEAD "),
        ("http-put", b"PUT "),
        ("http-other", b"OPTIONS "),
        ("http-2xx", b"HTTP/1.1 2"),
        ("http-3xx", b"HTTP/1.1 3"),
        ("http-4xx", b"HTTP/1.1 4"),
        ("http-5xx", b"HTTP/1.1 5"),
        ("http-response", b"HTTP/1."),
        ("http2-preface", b"PRI * HTTP/2.0"),
        ("ssh-banner", b"SSH-"),
        ("ftp-banner", b"220"),
        ("ftp-user", b"USER "),
        ("smtp-hello", b"EHLO "),
        ("smtp-hello", b"HELO "),
        ("imap-greeting", b"* OK"),
        ("pop-greeting", b"+OK"),
        ("sip-request", b"INVITE "),
        ("sip-request", b"REGISTER "),
        ("sip-request", b"BYE "),
        ("sip-request", b"ACK sip"),
        ("sip-request", b"OPTIONS sip"),
        ("sip-response", b"SIP/2.0 "),
        ("rsync-banner", b"@RSYNCD:"),
        ("ssdp", b"M-SEARCH "),
        ("ssdp", b"NOTIFY "),
        ("bittorrent", b"\x13BitTorrent"),
        ("redis-command", b"*"),
        ("redis-reply", b"+"),
        ("redis-reply", b"$"),
        ("rdp", b"\x03\x00\x00"),
    ]
    return rows


_TEXT: Final = _text_kinds()
_LONGEST_FIRST: Final = sorted(_TEXT, key=lambda row: -len(row[1]))

_NAMES: Final = (
    "unknown", "zeros", "tls-client-hello", "tls-server-hello", "tls-other", "tls-data",
    "dns-query-a", "dns-query-aaaa", "dns-query-other", "dns-answer-empty", "dns-answer-1", "dns-answer-few",
    "dns-answer-many", "dns-nxdomain", "dns-error", "ntp-client", "ntp-server", "stun-request", "stun-response",
    "quic-initial", "quic-handshake", "quic-short", "dtls", "rtp", "rtcp", "dhcp", "snmp", "mqtt-connect",
    "mqtt-connack", "mqtt-other", "smb", "text", "binary",
)  # fmt: skip


def _all_kinds() -> tuple[str, ...]:
    names = list(_NAMES)
    for name, _ in _TEXT:
        if name not in names:
            names.append(name)
    return tuple(names)


KINDS: Final = _all_kinds()
_NUMBER: Final = {name: i for i, name in enumerate(KINDS)}

# Fewest payload bytes with which a packet of a kind is still one, by transport; what is not here needs none. On TCP
# most messages can go on in the next segment, but an SSH packet has 16 bytes at least (RFC 4253 section 6).
LEAST: Final = {
    (_UDP, "dns-query-a"): 26,
    (_UDP, "dns-query-aaaa"): 26,
    (_UDP, "dns-query-other"): 26,
    (_UDP, "dns-answer-empty"): 26,
    (_UDP, "dns-answer-1"): 35,
    (_UDP, "dns-answer-few"): 51,
    (_UDP, "dns-answer-many"): 99,
    (_UDP, "dns-nxdomain"): 26,
    (_UDP, "dns-error"): 26,
    (_UDP, "ntp-client"): 48,
    (_UDP, "ntp-server"): 48,
    (_UDP, "stun-request"): 20,
    (_UDP, "stun-response"): 20,
    (_UDP, "quic-initial"): 48,
    (_UDP, "quic-handshake"): 48,
    (_UDP, "quic-short"): 21,
    (_UDP, "dtls"): 14,
    (_UDP, "rtp"): 12,
    (_UDP, "rtcp"): 8,
    (_UDP, "dhcp"): 300,
    (_UDP, "snmp"): 56,
    (_UDP, "sip-request"): 44,
    (_UDP, "sip-response"): 44,
    (_UDP, "ssdp"): 32,
    (_TCP, "ntp-client"): 48,
    (_TCP, "ntp-server"): 48,
    (_TCP, "ssh-banner"): 16,
    (_TCP, "rsync-banner"): 14,
    (_TCP, "ftp-user"): 7,
    (_TCP, "smtp-hello"): 7,
    (_TCP, "http2-preface"): 24,
}

# The same for what such a side says later: QUIC goes on with short headers, and the next answer may be an empty one.
LEAST_LATER: Final = {
    (_UDP, "dns-answer-1"): 26,
    (_UDP, "dns-answer-few"): 26,
    (_UDP, "dns-answer-many"): 26,
    (_UDP, "quic-initial"): 21,
    (_UDP, "quic-handshake"): 21,
}

# The same by well-known port, for a side whose kind says nothing.
LEAST_AT_PORT: Final = {
    (_UDP, 53): 26,
    (_UDP, 67): 300,
    (_UDP, 68): 300,
    (_UDP, 123): 48,
    (_UDP, 161): 56,
    (_UDP, 162): 56,
    (_UDP, 443): 21,
    (_UDP, 5060): 44,
    (_UDP, 5353): 26,
    (_UDP, 5355): 26,
    (_TCP, 21): 7,
    (_TCP, 22): 16,
    (_TCP, 25): 7,
    (_TCP, 123): 48,
    (_TCP, 587): 7,
    (_TCP, 873): 14,
}


def kind_of(payload: bytes, protocol: int, sport: int, dport: int) -> int:
    """Number of the payload's kind in `KINDS`; 0 if it is unknown or nothing was captured."""
    if not payload:
        return 0
    if not any(payload):
        return 1
    name = _tcp_kind(payload, sport, dport) if protocol == _TCP else _udp_kind(payload, sport, dport)
    return _NUMBER[name]


def _prefix_kind(payload: bytes) -> str:
    for name, prefix in _LONGEST_FIRST:
        if payload.startswith(prefix):
            return name
    head = payload[:16]
    printable = 0
    for byte in head:
        if 32 <= byte < 127 or byte in (9, 10, 13):
            printable += 1
    return "text" if printable * 10 >= len(head) * 9 else "binary"


def _tcp_kind(payload: bytes, sport: int, dport: int) -> str:
    first = payload[0]
    if len(payload) >= 3 and 20 <= first <= 24 and payload[1] == 3 and payload[2] <= 4:
        if first == 22 and len(payload) >= 6:
            return {1: "tls-client-hello", 2: "tls-server-hello"}.get(payload[5], "tls-other")
        return "tls-data" if first == 23 else "tls-other"
    if sport == 53 or dport == 53:
        return _dns_kind(payload[2:])
    if first == 0x10 and payload[2:8].find(b"MQ") >= 0:
        return "mqtt-connect"
    if first == 0x20 and len(payload) >= 2 and payload[1] < 64:
        return "mqtt-connack"
    if (sport in (1883, 8883) or dport in (1883, 8883)) and first >> 4 in (3, 4, 8, 9, 12, 13, 14):
        return "mqtt-other"
    if payload[4:8] == b"\xffSMB" or payload[4:8] == b"\xfeSMB":
        return "smb"
    return _prefix_kind(payload)


def _dns_kind(payload: bytes) -> str:
    if len(payload) < 12:
        return "unknown"
    if payload[2] & 0x80:
        code = payload[3] & 15
        if code:
            return "dns-nxdomain" if code == 3 else "dns-error"
        answers = payload[6] << 8 | payload[7]
        if answers <= 1:
            return "dns-answer-1" if answers else "dns-answer-empty"
        return "dns-answer-few" if answers <= 4 else "dns-answer-many"
    at = 12
    while at < len(payload) and payload[at]:
        at += payload[at] + 1
    if at + 2 >= len(payload):
        return "dns-query-other"
    return {1: "dns-query-a", 28: "dns-query-aaaa"}.get(payload[at + 1] << 8 | payload[at + 2], "dns-query-other")


def _udp_kind(payload: bytes, sport: int, dport: int) -> str:
    first = payload[0]
    if sport in (53, 5353, 5355) or dport in (53, 5353, 5355):
        return _dns_kind(payload)
    if sport == 123 or dport == 123:
        return "ntp-client" if first & 7 == 3 else "ntp-server"
    if sport in (67, 68) and dport in (67, 68):
        return "dhcp"
    if sport in (161, 162) or dport in (161, 162):
        return "snmp"
    if len(payload) >= 20 and first < 2 and payload[4:8] == b"\x21\x12\xa4\x42":
        return "stun-response" if first else "stun-request"
    if first & 0x80 and first & 0x40 and len(payload) >= 6:
        return "quic-handshake" if first & 0x30 else "quic-initial"
    if len(payload) >= 13 and 20 <= first <= 25 and payload[1] == 254:
        return "dtls"
    if first >> 6 == 2 and len(payload) >= 8:
        return "rtcp" if 192 <= payload[1] <= 223 else "rtp"
    if sport == 443 or dport == 443:
        return "quic-short" if first & 0x40 else "binary"
    return _prefix_kind(payload)


def least_length(name: str, protocol: int, sport: int, dport: int, later: bool = False) -> int:
    """Fewest payload bytes of a packet of this kind between these ports; later: of one after a first one of this
    kind."""
    least = LEAST.get((protocol, name), 0)
    if later:
        least = LEAST_LATER.get((protocol, name), least)
    return max(least, LEAST_AT_PORT.get((protocol, sport), 0), LEAST_AT_PORT.get((protocol, dport), 0))
