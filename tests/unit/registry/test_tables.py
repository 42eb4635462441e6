"""The records that are no nodes, held in memory by kind."""

from federation.record import Record, Section
from registry.tables import Table, Tables


def payload_of(record: Record) -> bytes | None:
    return record.spec.payload if record.spec is not None else None


def record(key: str, payload: bytes | None) -> Record:
    made = Record(key)
    made.life = 1 if payload is not None else 2
    made.spec = Section(1, "here", 0, payload, 1, 1) if payload is not None else None
    return made


def test_only_something_newer_replaces_what_is_held() -> None:
    table = Table("x:", payload_of)
    heard: list[tuple[str, bytes | None]] = []
    table.on_change = lambda name, value: heard.append((name, value))
    for value, version in [(b"1", 5), (b"0", 4), (b"1", 6), (b"2", 7), (None, 6), (None, 8), (None, 9)]:
        table.put("a", value, version)
    assert heard == [("a", b"1"), ("a", b"2"), ("a", None)]
    assert (table.get("a"), len(table)) == (None, 0)


def test_each_record_goes_to_the_table_of_its_kind() -> None:
    tables = Tables()
    keys, lists = tables.add(Table("k:", payload_of)), tables.add(Table("a:", payload_of))
    for key in ("k:one", "a:two", "a:2001:db8::/32", "n:three", "kk:four", "k"):
        reading = tables.read(record(key, b"1"))
        if reading is not None:
            reading.show(3)
    assert dict(keys.items()) == {"one": b"1"}
    assert dict(lists.items()) == {"two": b"1", "2001:db8::/32": b"1"}
    assert tables.versions() == {"k:one": 3, "a:two": 3, "a:2001:db8::/32": 3}
    tables.drop("a:two", 2)
    tables.drop("a:2001:db8::/32", 3)
    tables.drop("n:three", 9)
    assert tables.versions() == {"k:one": 3, "a:two": 3}


def test_what_is_deleted_reads_as_nothing() -> None:
    tables = Tables()
    keys = tables.add(Table("k:", payload_of))
    for payload, version in ((b"1", 1), (None, 2)):
        reading = tables.read(record("k:one", payload))
        assert reading is not None
        reading.show(version)
    assert keys.get("one") is None
