"""What a federation record says of a key, also where a peer wrote it, and how keys are counted."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from federation.clock import hlc_of
from federation.record import Record, Section
from registry.api_key import MAX_COUNTERS, ApiKey
from registry.errors import ApiError
from registry.key_use import LAST_USE_EVERY_MS, MAX_NOTED, MINUTE_MS, KeyUse
from registry.keys import ANYONE, Grant, Principal, key_hash, key_id_of
from registry.tables import Table

ID = "0123456789abcdef01234567"
NOW_MS = 1_800_000_000_000
KEY = ApiKey(ID, "join", "for the lab", (), NOW_MS, "by", NOW_MS + 5_000, 2, "ab" * 20)


def section(payload: bytes, major: int = hlc_of(NOW_MS)) -> Section:
    return Section(major, "eu", 0, payload, 1, 1)


def record(spec: bytes | None = None, intent: bytes | None = None, end: bytes | None = None, life: int = 1) -> Record:
    made = Record(f"k:{ID}")
    made.life = life
    made.spec = section(spec) if spec is not None else None
    made.intent = section(intent) if intent is not None else None
    made.end = section(end) if end is not None else None
    return made


def test_what_is_written_is_read_again() -> None:
    used = replace(KEY, last_used_at_ms=NOW_MS, uses={"us": 1, "eu": 2})
    assert ApiKey.of(record(KEY.encode(), used.encode_use())) == used
    assert ApiKey.of(record(KEY.encode())) == KEY


@pytest.mark.parametrize("spec", [KEY.encode(), None, b"not JSON"])
def test_a_revocation_counts_whatever_else_is_known(spec: bytes | None) -> None:
    revoked = ApiKey.of(record(spec, end=b"an admin"))
    assert revoked is not None
    assert (revoked.status(0), revoked.revoked_by, revoked.revoked_at_ms) == ("revoked", "an admin", NOW_MS)
    assert (revoked.kind is None) == (spec != KEY.encode())


def test_a_deleted_key_is_revoked_too() -> None:
    deleted = ApiKey.of(record(end=b"", life=2))
    assert deleted is not None
    assert deleted.status(NOW_MS) == "revoked"
    torn = ApiKey.of(record(life=2))
    assert torn is not None
    assert torn.status(NOW_MS) == "revoked"


def changed(**fields: Any) -> bytes:
    return orjson.dumps({**orjson.loads(KEY.encode()), **fields})


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"[]", b"{}", b"null", b"\xff", b"[" * 10_000, changed(kind="root"), changed(kind=None), changed(name=1),
        changed(kind=["read"]), changed(kind={}), changed(name="x" * 256), changed(scopes="nodes"),
        changed(scopes=["all"]), changed(scopes=[1]), changed(scopes=None), changed(expires_at_ms=-1),
        changed(expires_at_ms="soon"), changed(expires_at_ms=1e9), changed(expires_at_ms=10**18),
        changed(max_uses=True),
        changed(max_uses=2**60), changed(created_at_ms={}), changed(hash=[]), changed(node_id=7),
    ],
)  # fmt: skip
def test_what_a_peer_wrote_that_is_no_key_is_none(payload: bytes) -> None:
    assert ApiKey.of(record(payload)) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{}", b"[]", b"[1]", b'["x",{}]', b"[null,[]]", b'[null,{"eu":-1}]', b'[null,{"eu":"2"}]', b"[-5,{}]",
        orjson.dumps([None, {str(number): 1 for number in range(300)}]),
    ],
)  # fmt: skip
def test_a_use_that_is_none_leaves_the_key_as_it_is(payload: bytes) -> None:
    assert ApiKey.of(record(KEY.encode(), payload)) == KEY


def test_names_cannot_command_a_terminal() -> None:
    made = ApiKey.of(record(changed(name="\x1b[2J", created_by="a\nb"), end=b"\x1b\xff" * 200))
    assert made is not None
    assert all(text is None or text.isprintable() for text in (made.name, made.created_by, made.revoked_by))


@pytest.mark.parametrize(
    ("key", "now_ms", "status"),
    [
        (KEY, NOW_MS, "active"),
        (KEY, NOW_MS + 4_999, "active"),
        (KEY, NOW_MS + 5_000, "expired"),
        (replace(KEY, expires_at_ms=None), NOW_MS * 2, "active"),
        (replace(KEY, uses={"eu": 1}), NOW_MS, "active"),
        (replace(KEY, uses={"eu": 1, "us": 1}), NOW_MS, "used_up"),
        (replace(KEY, uses={"eu": 9}), NOW_MS + 5_000, "expired"),
        (replace(KEY, uses={"eu": 9}, revoked_at_ms=1), NOW_MS + 5_000, "revoked"),
    ],
)
def test_the_status(key: ApiKey, now_ms: int, status: str) -> None:
    assert key.status(now_ms) == status
    assert key.shown(now_ms)["status"] == status
    assert key.hash not in str(key.shown(now_ms))


def test_an_overlap_never_makes_a_key_last_longer() -> None:
    assert KEY.expiring(NOW_MS + 1).expires_at_ms == NOW_MS + 1
    assert KEY.expiring(NOW_MS + 10**9).expires_at_ms == KEY.expires_at_ms
    assert replace(KEY, expires_at_ms=None).expiring(NOW_MS).expires_at_ms == NOW_MS


# use

TEXT = "sk-join-x"
HASHED = key_hash(TEXT)
JOINER = Principal("join", None, HASHED, TEXT, Grant("join", max_uses=2))
KNOWN = replace(KEY, key_id=key_id_of(HASHED))


class Bench:
    """One region's count, over a table that a test writes."""

    def __init__(self, registry_id: str = "eu") -> None:
        self.table: Table[ApiKey] = Table("k:", ApiKey.of)
        self.use = KeyUse(registry_id, self.table)
        self.table.on_change = self.use.learn
        self.version = 0

    def arrives(self, key: ApiKey) -> None:
        self.version += 1
        self.table.put(key.key_id, key, self.version)

    def join(self) -> None:
        with self.use.admission(JOINER):
            pass


def test_a_join_key_lets_in_as_many_as_it_says() -> None:
    bench = Bench()
    bench.join()
    with pytest.raises(RuntimeError), bench.use.admission(JOINER):
        raise RuntimeError  # a registration that failed does not count
    bench.join()
    with pytest.raises(ApiError, match="used"):
        bench.join()


def test_those_under_way_count() -> None:
    bench = Bench()
    with bench.use.admission(JOINER), bench.use.admission(JOINER), pytest.raises(ApiError, match="used"):
        bench.join()


@pytest.mark.parametrize("who", [ANYONE, Principal("admin", None, HASHED), JOINER._replace(grant=Grant("join"))])
def test_others_are_not_limited(who: Principal) -> None:
    bench = Bench()
    for _ in range(5):
        with bench.use.admission(who):
            pass


def test_uses_of_other_registries_count_and_none_is_lost() -> None:
    bench = Bench()
    bench.arrives(KNOWN)
    bench.join()
    written = bench.use.updated(KNOWN.key_id)
    assert written is not None
    assert written.uses == {"eu": 1}
    bench.arrives(replace(KNOWN, uses={"us": 1}))  # written at the same time elsewhere, and it won
    with pytest.raises(ApiError, match="used"):
        bench.join()
    again = bench.use.updated(KNOWN.key_id)
    assert again is not None
    assert again.uses == {"eu": 1, "us": 1}
    bench.arrives(again)
    assert list(bench.use.due()) == []


def test_registries_that_a_peer_makes_up_are_counted_up_to_a_bound_and_ours_in_any_case() -> None:
    bench = Bench()
    for batch in range(3):
        bench.arrives(replace(KNOWN, max_uses=None, uses={f"{batch}-{number}": 0 for number in range(MAX_COUNTERS)}))
    bench.join()
    written = bench.use.updated(KNOWN.key_id)
    assert written is not None
    assert (len(written.uses), written.uses["eu"]) == (MAX_COUNTERS, 1)


def test_a_restart_goes_on_counting() -> None:
    bench = Bench()
    bench.arrives(replace(KNOWN, uses={"eu": 1}))
    bench.join()
    with pytest.raises(ApiError, match="used"):
        bench.join()


def test_last_uses_are_coarse_and_rarely_written() -> None:
    bench = Bench()
    bench.use.note(KNOWN.key_id, NOW_MS + 61_000)
    assert list(bench.use.due()) == []  # its record has not arrived
    bench.arrives(KNOWN)
    (due,) = bench.use.due()
    assert due.last_used_at_ms == (NOW_MS + 61_000) // MINUTE_MS * MINUTE_MS
    bench.arrives(due)
    assert bench.use.noted() == {}
    bench.use.note(KNOWN.key_id, NOW_MS + LAST_USE_EVERY_MS)
    assert list(bench.use.due()) == []
    bench.use.note(KNOWN.key_id, NOW_MS + 3 * LAST_USE_EVERY_MS)
    assert len(list(bench.use.due())) == 1


def test_nothing_is_written_of_a_revoked_key() -> None:
    bench = Bench()
    bench.arrives(replace(KNOWN, revoked_at_ms=1))
    bench.use.note(KNOWN.key_id, NOW_MS * 2)
    assert list(bench.use.due()) == []


def test_keys_without_a_record_do_not_fill_the_memory() -> None:
    bench = Bench()
    for number in range(MAX_NOTED + 5):
        bench.use.note(str(number), NOW_MS)
    assert len(bench.use.noted()) == MAX_NOTED
