"""This registry's own writes: stamps are minted here, above everything that they replace."""

from collections.abc import Iterator
from typing import NamedTuple

from federation.clock import HLC_MAX, Dot, Now, hlc_of
from federation.core import Core
from federation.record import (
    KEY_PREFIX,
    MAX_INCARNATION,
    MAX_LIFE,
    REGISTRY_PREFIX,
    Item,
    Record,
    Section,
    SectionKind,
    section_of,
)
from federation.seals import Seal, is_sealed, seal_of, sealed


class Token(NamedTuple):
    """What a node carries from one registry to the next, so that each mints above the last: `epoch` is
    the greatest stamp that was minted for it."""

    life: int
    incarnation: int
    epoch: int


class Writes:
    """Mints and applies. Raises KeyError for a key that does not exist here."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def register(
        self,
        key: str,
        payload: bytes,
        now: Now,
        *,
        incarnation: int,
        judgement: bytes,
        token: Token | None,
        anew: bool = False,
    ) -> Token:
        """A node registers: it exists, as it says, and is ours. `anew`: in a life of its own, whatever stands; what
        operators want of it stays."""
        held = self._core.replica.get(key)
        intent = held.intent if anew and held is not None and not held.deleted else None
        life, own_incarnation, born = self._life(key, incarnation, token, anew=anew)
        above = self._above(token, now)
        moved = above > _stamp(self._core.replica.get(key))
        record = self._spec(key, payload, now, life, own_incarnation, born, above)
        word = record.judgement
        if word is not None and word.origin == self._core.me and not moved:
            if word.payload != judgement or not self._core.replica.vouches_for(word):
                self.judge_own(key, judgement, now)
        else:
            self._adopt(record, judgement, now, above)
        if intent is not None and record.intent is None:
            self._write(record, SectionKind.INTENT, self._mint(now, intent.major), 0, intent.payload)
        return self._token(record)

    def heartbeat(self, key: str, judgement: bytes, now: Now, token: Token | None) -> tuple[Token, Record] | None:
        """A node beats here: it is ours, if it was not. None: it has to register first."""
        record = self._core.replica.get(key)
        if record is None or not record.exists:
            return None
        if token is not None and (token.life, token.incarnation) > (record.life, record.incarnation):
            return None  # a later life of it, which we have not heard of
        held, above = record.judgement, self._above(token, now)
        if held is None or held.origin != self._core.me or above > _stamp(record):
            self._adopt(record, judgement, now, above)
        elif not self._core.replica.vouches_for(held):
            # Our word, of a start that our store has lost: no watermark of ours vouches for it, until we
            # say it again.
            self.judge_own(key, held.payload, now)
        return self._token(record), record

    def judge(self, key: str, value: bytes, now: Now) -> bool:
        """The owner's word; False when we are not (any more) the owner, or have said so already."""
        record = self._core.replica.get(key)
        held = record.judgement if record is not None and record.exists else None
        if held is None or held.origin != self._core.me:
            return False
        if held.payload == value and self._core.replica.vouches_for(held):
            return False
        self.judge_own(key, value, now)
        return True

    def judge_own(self, key: str, value: bytes, now: Now) -> None:
        """A later word within the epoch that we hold, or the first one of our own record."""
        record = self._existing(key)
        held = record.judgement
        if held is None or held.origin != self._core.me:
            self._adopt(record, value, now, 0)
            return
        minor = self._mint(now, held.major, held.minor)
        self._write(record, SectionKind.JUDGEMENT, held.major, minor, value)

    def amend(self, key: str, payload: bytes, now: Now) -> None:
        """The operator's intent."""
        record = self._existing(key)
        held = record.intent
        self._write(record, SectionKind.INTENT, self._mint(now, held.major if held else 0), 0, payload)

    def put(self, key: str, payload: bytes, now: Now, *, anew: bool = False) -> None:
        """A thing without an owner. `anew`: in a life of its own, whatever stands."""
        life, incarnation, born = self._life(key, 0, None, anew=anew)
        self._spec(key, payload, now, life, incarnation, born, 0)

    def delete(self, key: str, reason: bytes, now: Now) -> None:
        """It exists no more."""
        record = self._existing(key)
        birth = record.birth
        stamp = self._mint(now, *(item.section.major for item in record.items()))
        section = self._section(stamp, 0, reason, birth or ())
        self._apply(Item(key, record.life + 1, record.incarnation, SectionKind.END, section))

    def revoke(self, key: str, reason: bytes, now: Now) -> None:
        """A key is good no more, wherever it is known, also where it is not known yet. For ever."""
        record = self._core.replica.get(key)
        if record is not None and (record.end is not None or record.deleted):
            return
        life, incarnation = (record.life, record.incarnation) if record is not None else (1, 0)
        self._apply(Item(key, life, incarnation, SectionKind.END, self._section(self._mint(now), 0, reason)))

    def restating(self, origin: str) -> Iterator[None]:
        """Write anew, and seal, what that registry has sealed: one that is gone, or we ourselves with another key. All
        but its own entry. It stands just above what it replaces, and below whatever was written since, anywhere. In
        steps of one write each: others may be made between them."""
        for item in self._sealed_by(origin):
            self._restate(item)
            yield

    def restating_unvouched(self, origin: str) -> Iterator[None]:
        """The same for what the roster does not vouch for (any more), in steps of one look each."""
        for item in self._sealed_by(origin):
            yield
            if seal_of(item, self._core.replica.roster) is not Seal.HOLDS:
                self._restate(item)

    # parts

    def _sealed_by(self, origin: str) -> list[Item]:
        """What stands of what it has sealed, but for its own entry."""
        found = []
        for chain, log in self._core.replica.logs.items():
            for seq, record, kind in log.after(0, log.last) if chain[0] == origin else ():
                section = section_of[kind](record)
                if section is not None and log.is_live(seq, record, kind):
                    item = Item(record.key, record.life, record.incarnation, kind, section)
                    if is_sealed(item) and item.key != REGISTRY_PREFIX + origin:
                        found.append(item)
        return found

    def _restate(self, item: Item) -> None:
        record, held = self._core.replica.get(item.key), item.section
        if record is None or item not in record.items():
            return  # something else stands there by now
        birth = held.birth or (held.dot if item.kind == SectionKind.SPEC else ())
        anew = self._section(min(held.major + 1, HLC_MAX), held.minor, held.payload, birth)
        if anew > held:
            self._apply(item._replace(section=anew))

    def _life(self, key: str, incarnation: int, token: Token | None, *, anew: bool = False) -> tuple[int, int, bool]:
        """(life, incarnation, whether it is new here) of something that registers."""
        record = self._core.replica.get(key)
        floor = 0 if key.startswith(KEY_PREFIX) else self._core.replica.life_floor
        brought = (0, 0)
        if token is not None and token.life % 2 == 1 and floor < token.life <= MAX_LIFE:
            brought = token.life, min(max(0, token.incarnation), MAX_INCARNATION)
        if record is not None and not record.deleted and not anew:
            held = record.life, record.incarnation
            return (*max(held, brought), brought > held or record.spec is None)
        least = record.life + 1 + record.life % 2 if record is not None else floor + 1 + floor % 2
        if least > (1 if key.startswith(KEY_PREFIX) else MAX_LIFE):
            raise ValueError(f"{key} has been deleted and registered too often; use another id")
        return (*max((least, incarnation), brought), True)

    def _above(self, token: Token | None, now: Now) -> int:
        """What to mint above. A node can claim any stamp: one of nobody's clock would leave no room above,
        and be refused elsewhere."""
        horizon_ms = self._core.wall_ms(now) + self._core.config.clock_horizon_ms
        return token.epoch if token is not None and token.epoch <= hlc_of(horizon_ms) else 0

    def _spec(self, key: str, payload: bytes, now: Now, life: int, incarnation: int, born: bool, above: int) -> Record:
        record = self._core.replica.get(key)
        held = record.spec if record is not None and (record.life, record.incarnation) == (life, incarnation) else None
        stamp = self._mint(now, held.major if held else 0, above)
        birth = held.birth or held.dot if held is not None and not born else ()
        return self._apply(Item(key, life, incarnation, SectionKind.SPEC, self._section(stamp, 0, payload, birth)))

    def _adopt(self, record: Record, judgement: bytes, now: Now, above: int) -> None:
        held = record.judgement
        epoch = self._mint(now, held.major if held else 0, above)
        self._write(record, SectionKind.JUDGEMENT, epoch, 0, judgement)

    def _write(self, record: Record, kind: SectionKind, major: int, minor: int, payload: bytes) -> None:
        section = self._section(major, minor, payload)
        self._apply(Item(record.key, record.life, record.incarnation, kind, section))

    def _section(
        self, major: int, minor: int, payload: bytes, birth: tuple[()] | tuple[str, int, int] | Dot = ()
    ) -> Section:
        replica = self._core.replica
        return Section(major, replica.registry_id, minor, payload, replica.generation, replica.next_seq, birth)

    def _apply(self, item: Item) -> Record:
        key = self._core.key
        record = self._core.replica.write(sealed(item, key) if key is not None else item)
        self._core.stored([record])
        self._core.stored_meta()
        return record

    def _existing(self, key: str) -> Record:
        record = self._core.replica.get(key)
        if record is None or record.deleted or not (record.spec or record.end):
            raise KeyError(key)
        return record

    def _mint(self, now: Now, *above: int) -> int:
        return self._core.clock.mint(self._core.wall_ms(now), *(min(stamp, HLC_MAX - 2) for stamp in above))

    @staticmethod
    def _token(record: Record) -> Token:
        return Token(record.life, record.incarnation, _stamp(record))


def _stamp(record: Record | None) -> int:
    """The greatest stamp that the node's token may carry, as far as it is known here."""
    sections = (record.spec, record.judgement) if record is not None else ()
    return max((section.major for section in sections if section is not None), default=0)
