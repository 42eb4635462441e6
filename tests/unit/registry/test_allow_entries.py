"""How entries of the allowlist are read and written, and whom they cover."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.allow_entries import Rules, node_entry, parse_address, parse_entry

# what is written, its kind, its one spelling
WRITTEN = [
    ("gpu-7", "node_id", "gpu-7"),
    (" gpu-7 ", "node_id", "gpu-7"),
    ("node:gpu-7", "node_id", "gpu-7"),
    ("NODE:gpu-7", "node_id", "gpu-7"),
    ("10", "node_id", "10"),
    ("aa:bb:cc:dd:ee:ff", "node_id", "aa:bb:cc:dd:ee:ff"),
    ("node:192.0.2.7", "node_id", "node:192.0.2.7"),
    ("node:cert:x", "node_id", "node:cert:x"),
    ("pending", "node_id", "node:pending"),  # a route
    ("node:node:x", "node_id", "node:node:x"),
    ("node:" + "x" * 255, "node_id", "x" * 255),
    ("192.0.2.7", "address", "192.0.2.7"),
    ("192.0.2.7/32", "address", "192.0.2.7"),
    ("::ffff:192.0.2.7", "address", "192.0.2.7"),
    ("::FFFF:c000:207/128", "address", "192.0.2.7"),
    ("2001:DB8::0007", "address", "2001:db8::7"),
    ("192.0.2.0/24", "network", "192.0.2.0/24"),
    ("192.0.2.0/255.255.255.0", "network", "192.0.2.0/24"),
    ("::ffff:192.0.2.0/120", "network", "192.0.2.0/24"),
    ("2001:db8::/32", "network", "2001:db8::/32"),
    ("0.0.0.0/0", "network", "0.0.0.0/0"),
    ("::ffff:0:0/96", "network", "0.0.0.0/0"),
    ("cert:gpu-7.example.org", "certificate", "cert:gpu-7.example.org"),
    ("CERT:urn:dagi:node:gpu-7", "certificate", "cert:urn:dagi:node:gpu-7"),
    ("cert:spiffe://example.org/gpu/7", "certificate", "cert:spiffe://example.org/gpu/7"),
]

# what is written, a part of what is said of it
REFUSED = [
    ("", "1 to 290 characters"),
    ("x" * 291, "1 to 290 characters"),
    ("x" * 256, "neither a node id"),
    ("a box", "neither a node id"),
    ("*", "neither a node id"),
    ("192.0.2.*", "neither a node id"),
    ("\u0661\u0662.3.4.5", "neither a node id"),
    ("192.0.2.7/24", "write 192.0.2.0/24 for the network, 192.0.2.7 for the address"),
    ("2001:db8::1/32", "write 2001:db8::/32 for the network"),
    ("192.0.2.300", "if it is a node's id, write node:192.0.2.300"),
    ("127.1", "if it is a node's id"),
    ("192.000.002.001", "if it is a node's id"),
    ("1::2::3", "if it is a node's id"),
    ("10.0.0.0/33", "is no network"),
    ("10.0.0.0/-1", "is no network"),
    ("box/1", "is no network"),
    ("/24", "is no network"),
    ("fe80::1%eth0", "leave out the zone"),
    ("fe80::%eth0/64", "leave out the zone"),
    ("cert:", "without spaces and commas"),
    ("cert:a box", "without spaces and commas"),
    ("cert:a,b", "without spaces and commas"),
    ("cert:b\u00f6x", "visible ASCII"),
    ("node:", "is no node id"),
    ("node:a/b", "is no node id"),
]


@pytest.mark.parametrize(("written", "kind", "text"), WRITTEN)
def test_an_entry_has_one_spelling(written: str, kind: str, text: str) -> None:
    entry = parse_entry(written)
    assert (entry.kind, entry.text) == (kind, text)
    assert parse_entry(entry.text) == entry


@pytest.mark.parametrize(("written", "words"), REFUSED)
def test_what_is_none_is_refused_in_words(written: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_entry(written)


@given(st.from_regex(r"[A-Za-z0-9._:-]{1,255}", fullmatch=True))
def test_every_node_id_has_an_entry_that_is_its_own(node_id: str) -> None:
    """Also one that reads as an address or as a certificate: an approval of it must not let a network in."""
    entry = node_entry(node_id)
    assert entry.kind == "node_id"
    assert parse_entry(entry.text) == entry


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("0.0.0.0/0", "every IPv4 address"),
        ("::/0", "every IPv6 address"),
        ("10.0.0.0/7", "one in 128 of all IPv4"),
        ("2000::/3", "one in 8 of all IPv6"),
        ("10.0.0.0/8", None),
        ("2001:db8::/32", None),
        ("gpu-7", None),
    ],
)
def test_a_large_network_is_warned_of(written: str, words: str | None) -> None:
    warning = parse_entry(written).warning
    assert (words in warning) if words and warning else warning is None


# entries, node id, address, what the certificate names, whether they cover it
COVERED = [
    ("gpu-7", "gpu-7", "198.51.100.1", (), True),
    ("gpu-7", "GPU-7", "198.51.100.1", (), False),
    ("gpu-7", "gpu-70", "198.51.100.1", ("gpu-7",), False),
    ("192.0.2.7", "x", "192.0.2.7", (), True),
    ("192.0.2.7", "x", "::ffff:192.0.2.7", (), True),
    ("192.0.2.7", "x", "192.0.2.70", (), False),
    ("192.0.2.7", "192.0.2.7", "198.51.100.1", (), False),  # an address is no id
    ("node:192.0.2.7", "192.0.2.7", "198.51.100.1", (), True),
    ("node:192.0.2.7", "x", "192.0.2.7", (), False),
    ("192.0.2.0/24", "x", "192.0.2.255", (), True),
    ("192.0.2.0/24", "x", "192.0.3.0", (), False),
    ("0.0.0.0/0", "x", "203.0.113.9", (), True),
    ("0.0.0.0/0", "x", "2001:db8::1", (), False),
    ("0.0.0.0/0", "x", "", (), False),  # nobody knows where it came from
    ("::/0", "x", "192.0.2.7", (), False),
    ("fe80::1", "x", "fe80::1%eth0", (), True),
    ("2001:db8::/32", "x", "2001:db8:ffff::1", (), True),
    ("2001:db8::/32", "x", "2001:db9::1", (), False),
    ("cert:gpu-7", "x", "192.0.2.7", ("urn:dagi:node:gpu-7", "gpu-7"), True),
    ("cert:cn:box", "x", "192.0.2.7", ("cn:box",), True),
    ("cert:gpu-7", "gpu-7", "192.0.2.7", (), False),
    ("cert:gpu-7", "cert:gpu-7", "192.0.2.7", (), False),
]


@pytest.mark.parametrize(("written", "node_id", "address", "names", "covered"), COVERED)
def test_whom_an_entry_covers(written: str, node_id: str, address: str, names: tuple[str, ...], covered: bool) -> None:
    rules = Rules()
    assert not rules.cover(node_id, address, names)
    rules.add(parse_entry("198.18.0.0/15"))
    rules.add(parse_entry(written))
    assert rules.cover(node_id, address, names) == covered
    rules.discard(parse_entry(written))
    assert not rules.cover(node_id, address, names)
    assert rules


networks = st.builds(
    lambda bits, length: str(ipaddress.ip_network((bits, length), strict=False)),
    st.integers(2**31, 2**31 + 300),
    st.integers(20, 32),
)


@given(st.lists(st.tuples(st.booleans(), networks)), st.integers(2**31, 2**31 + 300))
def test_networks_come_and_go_in_any_order(changes: list[tuple[bool, str]], bits: int) -> None:
    rules, there = Rules(), set[str]()
    for comes, text in changes:
        (rules.add if comes else rules.discard)(parse_entry(text))
        (there.add if comes else there.discard)(text)
    address = ipaddress.IPv4Address(bits)
    assert rules.cover("x", str(address), ()) == any(address in ipaddress.ip_network(text) for text in there)
    assert bool(rules) == bool(there)


def test_an_address_is_read_as_entries_mean_it() -> None:
    assert parse_address("::ffff:192.0.2.7") == ipaddress.ip_address("192.0.2.7")
    assert parse_address("fe80::1%eth0") == ipaddress.ip_address("fe80::1")
    assert parse_address("unix:") is None
