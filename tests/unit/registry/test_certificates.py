"""Whom a certificate names, and what its holder may do with which key, as tables."""

from dataclasses import replace
from typing import Any

import pytest

from registry.api_key import ApiKey
from registry.auth import Authenticator
from registry.certificates import Certificate, certificate_of, packed, unpacked
from registry.directory import Directory
from registry.errors import ApiError
from registry.keys import ANYONE, Grant, Principal, key_hash, mint_node_key
from registry.lifecycle import Windows
from tests.support.records import record

ADMIN = "sk-admin-" + "a" * 40
SECRET = b"s" * 32
AFTER = "Jan  5 09:34:43 2028 GMT"


def peercert(*uris: str, cn: str | tuple[str, ...] = ()) -> dict[str, Any]:
    """As `ssl` gives it."""
    names = (cn,) if isinstance(cn, str) else cn
    return {
        "subject": ((("organizationName", "somebody"),), *((("commonName", name),) for name in names)),
        "subjectAltName": (("DNS", "host.example.org"), *(("URI", uri) for uri in uris)),
        "notAfter": AFTER,
    }


NAMED = [  # URIs, common names, the node it names, the registry it names
    (("urn:dagi:node:box-1",), (), "box-1", None),
    (("urn:dagi:node:a:b.c_d",), (), "a:b.c_d", None),
    (("URN:DAGI:Node:Box",), (), "Box", None),  # the scheme and our name have no case, ids do
    (("urn:dagi:registry:eu",), (), None, "eu"),
    (("urn:dagi:node:box", "urn:dagi:registry:eu"), (), "box", "eu"),  # a machine that is both
    (("urn:dagi:node:box",), "other", "box", None),  # a URI of ours stands over the common name
    (("urn:dagi:registry:eu",), "box", None, "eu"),
    (("spiffe://example.org/box",), "box", "box", "box"),  # a real authority's: the common name is all there is
    ((), "box", "box", "box"),
    ((), "a:b", "a:b", None),  # no registry id has a colon
    ((), ("box", "other"), None, None),  # of two nobody knows which is meant
    (("urn:dagi:node:a", "urn:dagi:node:b"), (), None, None),
    (("urn:dagi:node:a", "urn:dagi:node:a"), (), "a", None),
    (("urn:dagi:node:",), "box", None, None),
    (("urn:dagi:node:a b",), "box", None, None),
    (("urn:dagi:node:a\n",), (), None, None),
    (("urn:dagi:node:a\0b",), (), None, None),
    (("urn:dagi:nodes:a",), "box", None, None),  # ours, but nothing that we know
    (("urn:dagi:node:" + "x" * 256,), (), None, None),
    (("urn:dagi:node:discover",), (), None, None),  # reserved
    ((), "Jane Doe", None, None),
    ((), "jane@example.org", None, None),
    ((), (), None, None),
]  # fmt: skip


@pytest.mark.parametrize(("uris", "cn", "node", "registry"), NAMED)
def test_whom_a_certificate_names(uris: Any, cn: Any, node: str | None, registry: str | None) -> None:
    found = certificate_of(peercert(*uris, cn=cn))
    assert (found.node_id, found.registry_id) == (node, registry)
    assert found.expires_s == 1830677683.0


def test_an_allowlist_may_know_it_by_each_of_its_names_and_they_end_somewhere() -> None:
    assert certificate_of(peercert("urn:dagi:node:a", "spiffe://x/y", cn="A")).names == (
        "urn:dagi:node:a", "spiffe://x/y", "cn:A",
    )  # fmt: skip
    many = certificate_of(peercert(*(f"urn:x:{number}" for number in range(1_000)), "urn:" + "y" * 9_000))
    assert len(packed(many)) < 8_000  # it travels in a header


@pytest.mark.parametrize(("uris", "cn"), [(row[0], row[1]) for row in NAMED])
def test_between_workers_it_stays_what_it_is_and_fits_a_header(uris: Any, cn: Any) -> None:
    certificate = certificate_of(peercert(*uris, cn=cn))
    text = packed(certificate)
    assert text.isascii()
    assert text.isprintable()
    assert unpacked(text) == certificate


# who may what: the certificate names `own`, `other`, or nobody


def authenticator(mode: str) -> Authenticator:
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    return Authenticator(mode, directory, SECRET, [key_hash(ADMIN)], anyone_may_join=False)


OWN_KEY, OTHER_KEY = (f"Bearer {mint_node_key(SECRET, name, b'n' * 12)}" for name in ("own", "other"))
NODE, NOBODY = (Certificate(node_id, None, (), 0.0) for node_id in ("own", None))
OK, WRONG, ANONYMOUS = "ok", "wrong_certificate", "unauthenticated"
MAY = [  # certificate, key; may it heartbeat own, other; join as own, as other; in mode key, then in mode open
    (NODE, None, (OK, WRONG, OK, WRONG), (OK, WRONG, OK, WRONG)),
    (NODE, OWN_KEY, (OK, WRONG, OK, WRONG), (OK, WRONG, OK, WRONG)),
    (NODE, OTHER_KEY, (WRONG,) * 4, (WRONG,) * 4),
    (NODE, f"Bearer {ADMIN}", (OK,) * 4, (OK,) * 4),
    (NOBODY, None, (ANONYMOUS,) * 4, (OK,) * 4),
    (NOBODY, OWN_KEY, (OK, "forbidden", OK, OK), (OK,) * 4),
    (None, OWN_KEY, (OK, "forbidden", OK, OK), (OK,) * 4),
]


def outcome(call: Any) -> str:
    try:
        call()
    except ApiError as error:
        return error.code
    return OK


@pytest.mark.parametrize("mode", ["key", "open"])
@pytest.mark.parametrize(("certificate", "header", "in_key", "in_open"), MAY)
def test_what_certificate_and_key_together_allow(
    certificate: Certificate | None, header: str | None, in_key: tuple[str, ...], in_open: tuple[str, ...], mode: str
) -> None:
    auth = authenticator(mode)

    def who() -> Principal:
        found = auth.identify(header)
        return found if certificate is None else auth.certified(found, certificate)

    def joins(node_id: str) -> None:
        caller = who()
        auth.require_named(caller, node_id)
        auth.require_may_join(caller)

    calls = (
        lambda: auth.require(who(), "own", "own"),
        lambda: auth.require(who(), "own", "other"),
        lambda: joins("own"),
        lambda: joins("other"),
    )
    assert tuple(outcome(call) for call in calls) == (in_key if mode == "key" else in_open)


def test_a_key_of_another_kind_leaves_nothing_of_itself_with_a_node() -> None:
    """Its hash would become the node's."""
    assert authenticator("key").certified(Principal("none", None, b"hash", "sk-join-x"), NODE) == Principal(
        "node", "own", certificate=NODE
    )
    assert authenticator("key").certified(ANYONE, NOBODY) == Principal("none", certificate=NOBODY)


def test_what_outlasts_a_request_ends_with_the_certificate() -> None:
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    now_ms = [999_000]
    auth = Authenticator("key", directory, SECRET, [], anyone_may_join=False, now_ms=lambda: now_ms[0])
    who = auth.certified(auth.identify(None), replace(NODE, expires_s=1_000.0))
    auth.check_still(who)
    now_ms[0] = 1_000_000
    assert outcome(lambda: auth.check_still(who)) == "unauthenticated"


def test_a_record_that_claims_a_nodes_key_does_not_take_it_from_the_node() -> None:
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    auth = Authenticator("key", directory, SECRET, [], anyone_may_join=False)
    hashed = key_hash(OWN_KEY.removeprefix("Bearer ")).hex()
    directory.put(replace(record("own"), key_hash=hashed), 1, 0.0)
    directory.put(replace(record("claims"), key_hash=hashed), 2, 0.0)
    auth.require(auth.identify(OWN_KEY), "own", "own")
    assert outcome(lambda: auth.require(auth.identify(OWN_KEY), "own", "other")) == "forbidden"


def test_a_key_record_of_any_words_is_a_401_and_no_failure() -> None:
    directory = Directory(Windows(30, 90, 300), 0.0, "eu")
    auth = Authenticator("key", directory, SECRET, [], anyone_may_join=False)
    key, key_id, _ = auth.mint_grant(Grant("read"))
    auth.keys.put(key_id, ApiKey(key_id, "read", hash="\u00e9"), 1)
    assert outcome(lambda: auth.identify(f"Bearer {key}")) == "unauthenticated"
