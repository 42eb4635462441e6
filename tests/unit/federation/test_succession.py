"""Registries that are taken out of the roster, lose their identity, come back, or never sealed anything: in the end all
hold the same, and nothing that was written is lost."""

from collections import Counter

import pytest

from federation import succession
from federation.clock import hlc_of
from federation.ed25519 import PrivateKey
from federation.messages import Drain
from federation.record import Item, Record, SectionKind
from federation.replica import Replica
from federation.seals import sealed
from tests.support.fabric import Fabric
from tests.support.rosters import advert, registry_key
from tests.unit.federation.states import section

SPEC, INTENT, JUDGEMENT, END = SectionKind
OTHER = PrivateKey(b"another key of x's".ljust(32, b"."))
SUCCESSION_S = 20.0
WHILE_S = 4 * SUCCESSION_S  # three times as long at most, and a walk


class Federation(Fabric):
    """Registries that all seal, each linked with each."""

    def __init__(self, *names: str, digest_interval_s: float = 10.0) -> None:
        super().__init__()
        self.digest_interval_s = digest_interval_s
        for name in names:
            self.join(name)
        self.mesh()
        self.run(2)

    def join(self, name: str, replica: Replica | None = None, key: PrivateKey | None = None) -> None:
        """It starts."""
        config = {"succession_s": SUCCESSION_S, "digest_interval_s": self.digest_interval_s}
        self.add(name, replica, key or registry_key(name), **config)

    def part(self, *side: str) -> None:
        """These, and the others: no links between."""
        for one in side:
            for other in self.engines.keys() - set(side):
                self.unlink(one, other)

    def end(self, name: str) -> Replica:
        """It is gone."""
        self.part(name)
        return self.engines.pop(name).replica

    def write(self, name: str, *keys: str) -> None:
        """It writes keys, and revokes those that begin with an x."""
        engine, now = self.engines[name], self.now()
        for key in keys:
            self.perform(
                name, engine.revoke(f"k:{key}", b"", now) if key[0] == "x" else engine.put(f"k:{key}", b"", now)
            )

    def forget(self, name: str, other: str) -> None:
        """An operator at `name` takes the other out."""
        self.perform(name, self.engines[name].forget(other, b"", self.now()))

    def heals(self, seconds: float = WHILE_S) -> bool:
        """Everybody is linked again; whether all come to hold the same, and stay at that."""
        self.mesh()
        if not self.run(seconds, until=self.equal):
            return False
        self.run(5 * SUCCESSION_S)
        written = [engine.replica.vector for engine in self.engines.values()]
        before = [dict(vector) for vector in written]
        self.run(5 * SUCCESSION_S)
        return self.equal() and written == before

    def held(self, name: str) -> set[str]:
        """The keys that it holds, with what has become of them."""
        records = self.engines[name].replica.records()
        return {
            f"{record.key[2:]}{' revoked' * (record.end is not None)}" for record in records if record.key[:2] == "k:"
        }

    def life(self, name: str, of: str) -> tuple[int, bytes]:
        """The entry of another, as it holds it."""
        record = self.engines[name].replica.get(f"r:{of}")
        assert record is not None
        return record.life, record.spec.payload if record.spec is not None else b""

    def told(self, *codes: str) -> Counter[tuple[str, str]]:
        """Who was told of what."""
        return Counter((name, alert.code) for name, alert in self.alerts if not codes or alert.code in codes)


def test_who_was_away_meanwhile_takes_the_new_identity_and_gives_what_only_it_had() -> None:
    made = Federation("a", "b", "e", "x")
    made.write("x", "known")
    made.run(2)
    made.part("e", "x")
    made.write("x", "1", "x2")
    made.run(2)
    assert made.held("e") == {"known", "1", "x2 revoked"}
    made.end("x")
    made.forget("b", "x")
    made.run(2)
    made.join("x", key=OTHER)
    for name in "ab":
        made.link(name, "x")
    made.run(2)
    made.write("x", "new")
    made.alerts.clear()
    assert made.heals()
    assert all(made.held(name) == {"known", "1", "x2 revoked", "new"} for name in "abex")
    assert {made.life(name, "x") for name in "abe"} == {(3, advert("x", OTHER))}
    assert made.told("identity_replaced") == {("e", "identity_replaced"): 1}
    made.join("d")  # and who comes after all that can check all of it
    assert made.heals()
    assert made.held("d") == made.held("a")


def test_what_was_refused_comes_as_soon_as_the_identity_that_wrote_it_is_taken_in() -> None:
    made = Federation("a", "b", "x", digest_interval_s=10_000.0)
    made.end("x")
    made.join("x", key=OTHER)
    made.link("a", "x")
    made.write("x", "new")
    made.run(2)
    assert ("a", "forged") in made.told()
    assert made.held("a") == set()
    made.forget("b", "x")
    made.mesh()
    assert made.run(20, until=lambda: all(made.held(name) == {"new"} for name in "abx"))


def test_what_a_forgotten_registry_had_told_to_one_only_is_not_lost_with_it() -> None:
    made = Federation("a", "b", "e", "x")
    made.part("e", "x")
    made.write("x", "1", "x2")
    made.run(2)
    made.end("x")
    made.forget("b", "x")
    assert made.heals()
    assert all(made.held(name) == {"1", "x2 revoked"} for name in "abe")
    assert made.told() == {(name, "member_removed"): 1 for name in "abe"}


def test_two_operators_forget_one_that_lives_while_they_are_apart() -> None:
    made = Federation("a", "b", "c", "x")
    made.write("x", "1", "2", "3")
    made.run(2)
    made.part("a", "x")
    made.forget("a", "x")
    made.forget("b", "x")
    made.run(1)
    made.write("x", "4")
    made.write("c", "x1")
    assert made.heals()
    assert all(made.held(name) == {"1", "2", "3", "4", "x1 revoked"} for name in "abcx")
    assert {made.life(name, "x")[1] for name in "abcx"} == {advert("x")}
    assert not made.told("forged", "identity_replaced")


def test_what_one_wrote_before_it_heard_that_it_was_out_is_there_as_soon_as_it_is_back() -> None:
    made = Federation("a", "b", "x")
    made.part("x")
    made.forget("a", "x")
    made.run(2)
    made.write("x", "x1")
    record = made.engines["x"].replica.get("k:x1")
    assert record is not None
    for name in "ab":
        made.perform(
            name, made.engines[name].receive("ba"[name == "b"], Drain(1, 1, 0, tuple(record.items())), made.now())
        )
    made.run(5)
    made.mesh()
    assert made.run(3, until=lambda: made.held("a") == made.held("b") == {"x1 revoked"})


def test_two_that_forget_each_other_while_they_are_apart() -> None:
    made = Federation("a", "x")
    made.write("a", "1")
    made.write("x", "x2")
    made.run(2)
    made.part("x")
    made.forget("a", "x")
    made.forget("x", "a")
    made.write("a", "3")
    made.write("x", "4")
    assert made.heals()
    assert [made.held(name) for name in "ax"] == [{"1", "x2 revoked", "3", "4"}] * 2
    assert not made.told("forged", "identity_replaced")


def test_nothing_is_taken_in_the_name_of_one_whose_entry_a_member_took_out() -> None:
    """It ends the entry of x, and says what x is to have written while nobody can check that: so much that whoever
    took it, and passed it on, would not be listened to any more."""
    made = Federation("a", "x", "y", "z")
    generation = made.engines["x"].replica.generation
    stamp = hlc_of(made.now().wall_ms)
    out = sealed(Item("r:x", 2, 0, END, section(stamp, "z", generation=9)), registry_key("z"))
    made_up = [
        Item(f"k:{n}", 1, 0, SPEC, section(stamp, "x", payload=b"admin", generation=generation - 1, seq=n))
        for n in range(1, 150)
    ]
    del made.engines["z"]
    for name in "ay":
        made.perform(name, made.engines[name].receive("z", Drain(1, 1, 0, (out, *made_up)), made.now()))
    assert not made.held("a")
    assert not made.held("y")
    assert made.heals()
    assert not any(made.held(name) for name in "axy")
    made.write("y", "x1")
    assert made.run(1, until=lambda: made.held("a") == {"x1 revoked"})
    assert not made.told("forged")


@pytest.mark.parametrize("life", [2, 3])
def test_a_member_that_takes_another_s_name_is_told_of_and_does_not_keep_it(life: int) -> None:
    made = Federation("a", "x", "z")
    stamp = hlc_of(made.now().wall_ms)
    out = sealed(Item("r:x", life, 0, END, section(stamp, "z", generation=9)), registry_key("z"))
    taken = sealed(Item("r:x", 3, 0, SPEC, section(stamp, "x", payload=advert("x", OTHER), generation=stamp)), OTHER)
    for name in "ax":
        made.perform(name, made.engines[name].receive("z", Drain(1, 1, 0, (out, taken)), made.now()))
    made.run(2)
    made.write("x", "1")
    assert made.heals()
    assert {made.life(name, "x") for name in "axz"} == {(5, advert("x"))}
    assert all(made.held(name) == {"1"} for name in "axz")
    assert made.told("identity_replaced")["x", "identity_replaced"] == 1


def test_a_store_of_a_version_that_sealed_nothing() -> None:
    """One that had been forgotten then, one that does not come back before others do, one that has lost its store."""
    old = Fabric()
    for name in "abfxy":
        old.add(name, advert=advert(name))
    old.mesh()
    old.run(2)
    for name in "afxy":
        old.perform(name, old.engines[name].put(f"k:{name}", b"", old.now()))
    assert old.run(20, until=old.equal)
    stores = {name: engine.replica for name, engine in old.engines.items()}
    made = Federation()
    made.now_s = made._ticked_s = old.now_s
    for name in "abx":
        made.join(name, stores[name])
    made.mesh()
    made.forget("a", "f")
    made.run(2)
    made.join("y")
    assert made.heals(600)
    assert all(made.held(name) == set("afxy") for name in "abxy")
    made.join("d")
    assert made.heals()
    assert made.held("d") == set("afxy")


def test_one_that_is_taken_out_and_is_there_is_back_at_once() -> None:
    made = Federation("a", "x")
    for _ in range(3):
        made.forget("a", "x")
        assert made.run(1.5, until=lambda: "r:x" in made.engines["a"].replica.roster)


def test_two_of_one_name_answer_each_other_once_a_minute() -> None:
    made = Federation("a", "x")
    engine = made.engines["x"]
    for life, second in ((3, 1), (7, 59)):
        taken = Item("r:x", life, 0, SPEC, section(1, "x", payload=advert("x", OTHER), generation=9, seq=life))
        made.perform("x", engine.receive("a", Drain(1, 1, 0, (sealed(taken, OTHER),)), made.now()))
        made.run(second)
        assert made.life("x", "x") == ((5, advert("x")) if life == 3 else (7, advert("x", OTHER)))
    made.run(3)
    assert made.life("a", "x") == (9, advert("x"))


def test_what_changes_while_it_is_being_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(succession, "_ITEMS_A_TICK", 1)
    made = Federation("a", "e", "x")
    made.part("e", "x")
    made.write("x", *"123456")
    made.perform("x", made.engines["x"].put("a:1", b"listed", made.now()))
    made.perform("x", made.engines["x"].put("a:2", b"listed", made.now()))
    made.run(2)
    made.end("x")
    made.forget("a", "x")
    made.mesh()

    def began() -> bool:
        return any(record.spec.origin == "e" for record in records("k:") if record.spec is not None)

    def records(prefix: str) -> list[Record]:
        return [record for record in made.engines["e"].replica.records() if record.key.startswith(prefix)]

    assert made.run(WHILE_S, until=began)
    for record in records("a:"):
        made.perform("e", made.engines["e"].delete(record.key, b"", made.now()))
    for record in records("k:"):
        made.perform("e", made.engines["e"].put(record.key, b"later", made.now()))
    assert made.heals()
    assert {record.spec.payload for record in records("k:") if record.spec is not None} == {b"later"}
    assert all(record.deleted for record in records("a:"))


def test_what_it_acknowledges_in_its_next_life_may_come_before_its_entry() -> None:
    made = Federation("a", "x")
    stamp = hlc_of(made.now().wall_ms)
    parts = [
        Item("r:x", 3, 0, kind, section(stamp, "x", payload=advert("x"), generation=stamp, seq=2 - kind // 2))
        for kind in (JUDGEMENT, SPEC)
    ]
    for part in parts:
        made.perform(
            "a", made.engines["a"].receive("x", Drain(1, 1, 0, (sealed(part, registry_key("x")),)), made.now())
        )
        made.perform("a", made.engines["a"].tick(made.now()))
    assert made.life("a", "x") == (3, advert("x"))
    assert not made.told()
