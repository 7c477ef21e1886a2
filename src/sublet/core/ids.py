"""Ids: random where we choose, derived where a repeat must find the first."""

import uuid
from typing import Final
from uuid import UUID

_SPACE: Final = UUID("6b0f3c1e-58a4-4f0e-9f3b-2b1c6f7d9a10")


def new_id() -> UUID:
    return uuid.uuid4()


def derived_id(*parts: object) -> UUID:
    """Return the id that these parts always give, so that a repeated step repeats its ids."""
    return uuid.uuid5(_SPACE, "/".join(map(str, parts)))
