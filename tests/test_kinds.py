"""Kinds of first payloads: one row of the table a test, and no payload that raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netssmd.codec.kinds import KINDS, kind_of

TCP, UDP = 6, 17
DNS = bytes.fromhex("1234 0100 0001 0000 0000 0000 03777777 0161 00")


def dns(flags: str, answers: int = 0, qtype: str = "0001") -> bytes:
    return bytes.fromhex(f"1234{flags}0001{answers:04x}00000000") + b"\x03www\x01a\x00" + bytes.fromhex(qtype + "0001")


CASES = [
    ("unknown", b"", TCP, 1, 2),
    ("zeros", bytes(40), UDP, 53, 53),
    ("tls-client-hello", bytes.fromhex("160301020001000000"), TCP, 5, 443),
    ("tls-server-hello", bytes.fromhex("160303020002000000"), TCP, 443, 5),
    ("tls-data", bytes.fromhex("1703030200"), TCP, 443, 5),
    ("tls-other", bytes.fromhex("1503030002"), TCP, 443, 5),
    ("dns-query-a", dns("0100"), UDP, 5, 53),
    ("dns-query-a", b"\x00\x20" + dns("0100"), TCP, 5, 53),
    ("dns-query-aaaa", dns("0100", qtype="001c"), UDP, 5, 53),
    ("dns-query-other", dns("0100", qtype="000f"), UDP, 5, 5353),
    ("dns-query-other", dns("0100")[:14], UDP, 5, 53),
    ("dns-answer-empty", dns("8180"), UDP, 53, 5),
    ("dns-answer-1", dns("8180", 1), UDP, 53, 5),
    ("dns-answer-few", dns("8180", 4), UDP, 53, 5),
    ("dns-answer-many", dns("8180", 5), UDP, 53, 5),
    ("dns-nxdomain", dns("8183"), UDP, 53, 5),
    ("dns-error", dns("8182"), UDP, 53, 5),
    ("ntp-client", b"\x23" + bytes(46) + b"\1", UDP, 5, 123),
    ("ntp-server", b"\x24" + bytes(46) + b"\1", UDP, 123, 5),
    ("stun-request", bytes.fromhex("000100002112a442") + bytes(12), UDP, 5, 6),
    ("stun-response", bytes.fromhex("010100002112a442") + bytes(12), UDP, 5, 6),
    ("quic-initial", bytes.fromhex("c00000000108"), UDP, 5, 443),
    ("quic-handshake", bytes.fromhex("e00000000108"), UDP, 5, 443),
    ("quic-short", b"\x4f123456", UDP, 5, 443),
    ("dtls", bytes.fromhex("16fefd") + bytes(12), UDP, 5, 6),
    ("rtp", bytes.fromhex("8060") + bytes(20), UDP, 5, 6),
    ("rtcp", bytes.fromhex("80c8") + bytes(20), UDP, 5, 6),
    ("dhcp", b"\1\1\6\0", UDP, 68, 67),
    ("snmp", b"\x30\x29", UDP, 5, 161),
    ("mqtt-connect", bytes.fromhex("101000044d51545404"), TCP, 5, 1883),
    ("mqtt-connack", bytes.fromhex("20020000"), TCP, 1883, 5),
    ("mqtt-other", bytes.fromhex("300a0003"), TCP, 5, 1883),
    ("smb", bytes.fromhex("00000040fe534d42"), TCP, 5, 445),
    ("http-get", b"GET / HTTP/1.1\r\n", TCP, 5, 80),
    ("http-post", b"POST /x HTTP/1.1\r\n", TCP, 5, 80),
    ("http-2xx", b"HTTP/1.1 200 OK\r\n", TCP, 80, 5),
    ("http-4xx", b"HTTP/1.1 404 Not Found\r\n", TCP, 80, 5),
    ("http-response", b"HTTP/1.0 200 OK\r\n", TCP, 80, 5),
    ("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM", TCP, 5, 80),
    ("ssh-banner", b"SSH-2.0-OpenSSH_9.2\r\n", TCP, 22, 5),
    ("ftp-banner", b"220 ready\r\n", TCP, 21, 5),
    ("imap-greeting", b"* OK ready", TCP, 143, 5),
    ("redis-command", b"*2\r\n$3\r\nGET", TCP, 5, 6379),
    ("redis-reply", b"$5\r\nhello", TCP, 6379, 5),
    ("rsync-banner", b"@RSYNCD: 31.0\n", TCP, 873, 5),
    ("sip-request", b"INVITE sip:a@b SIP/2.0\r\n", UDP, 5, 5060),
    ("sip-response", b"SIP/2.0 200 OK\r\n", UDP, 5060, 5),
    ("ssdp", b"M-SEARCH * HTTP/1.1\r\n", UDP, 5, 1900),
    ("bittorrent", b"\x13BitTorrent protocol", TCP, 5, 6),
    ("text", b"hello, world\r\n", TCP, 5, 6),
    ("binary", bytes(range(128, 160)), TCP, 5, 6),
]


@pytest.mark.parametrize(("name", "payload", "protocol", "sport", "dport"), CASES)
def test_kind(name: str, payload: bytes, protocol: int, sport: int, dport: int) -> None:
    assert KINDS[kind_of(payload, protocol, sport, dport)] == name


def test_sip_options_is_sip() -> None:
    assert KINDS[kind_of(b"OPTIONS sip:a@b SIP/2.0\r\n", UDP, 5, 5060)] == "sip-request"


@given(
    st.binary(max_size=60), st.sampled_from([TCP, UDP]), st.sampled_from([0, 53, 123, 443, 1883]), st.integers(0, 65535)
)
def test_no_payload_raises(payload: bytes, protocol: int, sport: int, dport: int) -> None:
    for end in range(len(payload) + 1):
        assert 0 <= kind_of(payload[:end], protocol, sport, dport) < len(KINDS)


def test_the_numbers_of_kinds_do_not_move() -> None:
    """Models are trained on them: new kinds go to the end."""
    assert len(set(KINDS)) == len(KINDS) == 58
    assert (KINDS[0], KINDS[2], KINDS[32], KINDS[33], KINDS[57]) == (
        "unknown", "tls-client-hello", "binary", "http-get", "rdp",
    )  # fmt: skip
