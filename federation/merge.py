"""THE merge rule, the only one in the tree: a join semilattice.

    (life, incarnation) differ -> the greater record whole
    else                       -> of each section the greater whole tuple

The vector clock never chooses the winner: "the dominating vector wins, else the later clock" is not
associative. Stamps extend causality (see clock.HybridClock), origin and content make the order total.
"""

from federation.record import SECTION_NAMES, Item, Record, section_of


def absorb(record: Record, item: Item) -> bool:
    """Join an item into a record of the same key; whether it said anything new."""
    _, life, incarnation, kind, section = item
    if life != record.life or incarnation != record.incarnation:
        if (life, incarnation) < (record.life, record.incarnation):
            return False
        record.life, record.incarnation = life, incarnation
        record.spec = record.intent = record.judgement = record.end = None
    else:
        held = section_of[kind](record)
        if held is not None and held >= section:
            return False
    setattr(record, SECTION_NAMES[kind], section)
    return True
