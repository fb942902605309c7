"""Sets of addresses against Python's own `ipaddress`, and whose word for a client's address counts."""

from __future__ import annotations

import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.identity.networks import Networks, compile_networks, packed
from router.wire.client_address import client_address
from router.wire.proxy_header import BadProxyHeader, read_proxy_header

V4 = st.ip_addresses(v=4, network="10.0.0.0/29") | st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6, network="2001:db8::/125") | st.ip_addresses(v=6)
ADDRESSES = V4 | V6
BLOCKS = st.lists(
    st.builds(
        lambda address, length: ipaddress.ip_network(f"{address}/{min(length, address.max_prefixlen)}", strict=False),
        ADDRESSES,
        st.integers(0, 128),
    ),
    max_size=6,
)


def plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


@given(BLOCKS, ADDRESSES)
def test_membership_is_that_of_the_blocks(blocks, address):
    found = packed(str(address))
    assert found is not None
    assert compile_networks(map(str, blocks)).holds(found) == any(plain(address) in block for block in blocks)


@given(BLOCKS, BLOCKS, ADDRESSES)
def test_within_is_the_intersection(one, other, address):
    found = packed(str(address)) or b""
    both = compile_networks(map(str, one)), compile_networks(map(str, other))
    assert both[0].within(both[1]).holds(found) == all(networks.holds(found) for networks in both)


@pytest.mark.parametrize(
    ("block", "address", "inside"),
    [
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::/0", "10.1.2.3", False),
        ("0.0.0.0/0", "::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
def test_an_ipv4_address_in_ipv6_clothes_is_that_ipv4_address(block, address, inside):
    assert compile_networks([block]).holds(packed(address)) is inside


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("10.0.0.1/8", "did you mean `10.0.0.0/8`"),
        ("10.0.0.0/33", "is no block"),
        ("intranet", "is no block"),
        ("", "is no block"),
    ],
)
def test_a_wrong_block_is_said_so(block, message):
    with pytest.raises(ValueError, match=message):
        compile_networks([block])


PROXIES = compile_networks(["10.0.0.0/24", "fd00::/64"])


def told(peer: str | None, *forwarded: str, proxies: Networks = PROXIES) -> str | None:
    headers = [(b"accept", b"*/*"), *((b"x-forwarded-for", value.encode()) for value in forwarded)]
    found = client_address(peer, headers, proxies)
    return None if found is None else str(ipaddress.ip_address(found[1:]))


def test_nobody_but_a_trusted_proxy_is_believed():
    assert told("203.0.113.9", "192.0.2.1") == "203.0.113.9"
    assert told("10.0.0.5", "192.0.2.1", proxies=Networks()) == "10.0.0.5"
    assert told("10.0.0.5", "192.0.2.1") == "192.0.2.1"
    assert told("::ffff:10.0.0.5", "192.0.2.1") == "192.0.2.1"
    assert told("fd00::1", "2001:db8::9") == "2001:db8::9"


def test_what_a_client_wrote_before_its_proxy_counts_for_nothing():
    assert told("10.0.0.5", "192.0.2.1, 203.0.113.9") == "203.0.113.9"
    assert told("10.0.0.5", "192.0.2.1", "203.0.113.9, 10.0.0.7") == "203.0.113.9"
    assert told("10.0.0.5", "192.0.2.1, 203.0.113.9:4711") == "203.0.113.9"
    assert told("10.0.0.5", "192.0.2.1, [2001:db8::9]:443") == "2001:db8::9"
    assert told("10.0.0.5", "10.0.0.9, 10.0.0.7") == "10.0.0.9", "a proxy's own request"


@pytest.mark.parametrize(
    "forwarded", [(), ("",), ("unknown",), ("192.0.2.1, _hidden",), ("192.0.2.1,",), ("192.0.2.1 ; 10.0.0.7",)]
)
def test_a_client_whose_proxy_does_not_say_has_no_address(forwarded):
    assert told("10.0.0.5", *forwarded) is None


def test_a_peer_without_an_ip_address_has_none():
    assert told(None, "192.0.2.1") is None
    assert told("/run/socket") is None


def v2(command: int, family: int, addresses: bytes, more: bytes = b"") -> bytes:
    body = addresses + more
    return b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH", command, family, len(body)) + body


TCP4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("10.0.0.5") + struct.pack("!HH", 4711, 443)
TCP6 = socket.inet_pton(socket.AF_INET6, "2001:db8::9") + bytes(16) + struct.pack("!HH", 4711, 443)


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 10.0.0.5 4711 443\r\n", ("192.0.2.1", 4711)),
        (b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n", ("2001:db8::9", 4711)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        (v2(0x21, 0x11, TCP4), ("192.0.2.1", 4711)),
        (v2(0x21, 0x21, TCP6, b"\x03\x00\x04abcd"), ("2001:db8::9", 4711)),
        (v2(0x20, 0x00, b""), None),
        (v2(0x21, 0x31, bytes(216)), None),
    ],
)
def test_a_proxy_header_is_read_at_every_cut(header, client):
    for cut in range(len(header)):
        assert read_proxy_header(header[:cut]) is None
    found = read_proxy_header(header + b"GET / HTTP/1.1\r\n\r\n")
    assert found is not None and (found.client, found.length) == (client, len(header))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.5 4711\r\n",
        b"PROXY TCP4 2001:db8::9 ::1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.5 x 443\r\n",
        b"PROXY TCP4 \xff 10.0.0.5 1 443\r\n",
        b"PROXY \r\n",
        b"PROXY " + b"x" * 200,
        b"\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c" + TCP4,
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff",
        v2(0x21, 0x11, TCP4[:8]),
    ],
)
def test_what_is_no_proxy_header_is_refused(data):
    with pytest.raises(BadProxyHeader):
        read_proxy_header(data)


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", b"\r\n\r\n\x00\r\nQUIT\n", v2(0x21, 0x11, b"")[:14]])
)
def test_no_bytes_do_worse_than_being_refused(data, begin):
    try:
        found = read_proxy_header(begin + data)
    except BadProxyHeader:
        return
    assert found is None or found.length <= len(begin + data)
