"""Ids: new ones grow with time, derived ones are found again by a repeat."""

import os
import random
import time
import uuid
from typing import Final
from uuid import UUID

# Ids are no secrets, and asking the kernel for each of them is a hundred times as slow.
_DICE: Final = random.Random(os.urandom(32))  # noqa: S311
os.register_at_fork(after_in_child=lambda: _DICE.seed(os.urandom(32)))
_SPACE: Final = UUID("6b0f3c1e-58a4-4f0e-9f3b-2b1c6f7d9a10")


def new_id() -> UUID:
    """Return a version 7 id: the milliseconds of now, then 74 random bits.

    Ids that grow with time are added at the end of an index, not all over it, which is what
    keeps inserts fast in a table of many millions. Nothing but speed depends on the order.

    Source: RFC 9562, section 5.7.
    """
    milliseconds = time.time_ns() // 1_000_000
    high = _DICE.getrandbits(12)
    low = _DICE.getrandbits(62)
    return UUID(int=milliseconds << 80 | 0x7000 << 64 | high << 64 | 1 << 63 | low)


def sibling_id(id_: UUID, number: int) -> UUID:
    """Return the `number`th id beside `id_`, always the same, and its neighbour in an index.

    Args:
        id_: a version 4, 5 or 7 id of which only this function makes siblings.
        number: 1 to 255.
    """
    assert 0 < number < 256
    return UUID(int=id_.int ^ number << 48)


def derived_id(*parts: object) -> UUID:
    """Return the id that these parts always give, so that a repeated step repeats its ids."""
    return uuid.uuid5(_SPACE, "/".join(map(str, parts)))
