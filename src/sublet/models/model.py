"""A model of the catalogue: weights, how they are served, whose they are, under which terms."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid
from sublet.models.replica.recipe import Recipe
from sublet.tenants.tenant import Tenant

_OWN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SLUG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str  # what callers put in `model`
    owner_id: UUID | None  # who alone sees and may use it; None: the house's, sold to all
    title: str
    recipe_name: str  # the file that says how it is served
    recipe: Recipe | None  # all that a replica needs; None until its weights were checked
    chat_template: str  # that its owner gave; empty: the weights' own
    asked: "Asked"
    artefact_id: UUID | None  # None: its weights come in a package that the recipe names
    licence: str
    licence_url: str
    tokens_per_second: float | None  # of one replica with its slots full
    measured_at: datetime | None  # None: the recipe says it
    deleted_at: datetime | None
    created_at: datetime
    base: str | None = None  # whose replicas serve it: it was learnt on top of this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How its owner wants it served; None leaves it to the recipe."""

    recipe: str | None = None
    context_tokens: int | None = None


def full_name(owner: Tenant | None, name: str) -> str:
    """Return the name of a model in the catalogue: a tenant's begins with its own, and a slash.

    Raises:
        Invalid: it can be no name.
    """
    if not _OWN_NAME.fullmatch(name):
        raise Invalid(
            f"a model's name is 1 to 63 letters, digits, . _ and -, and begins with one of the"
            f" first two, not {name[:100]!r}"
        )
    return name if owner is None else f"{space_of(owner)}/{name}"


def space_of(owner: Tenant) -> str:
    """Return what the names of a tenant's models begin with."""
    return owner.name if _SLUG.fullmatch(owner.name) else str(owner.id)
