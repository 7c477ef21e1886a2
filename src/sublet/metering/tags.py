"""Tags of what is charged: what a tenant calls its keys, leases and reserved windows by."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.types.json import Jsonb

from sublet.core.db import Tx, one
from sublet.core.errors import Invalid, NotFound
from sublet.metering.store import QUERIES

_MOST: Final = 20
_NAME: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_LONGEST: Final = 100


def check(tags: Mapping[str, str]) -> None:
    """Raises Invalid: too many tags, or one that cannot be one."""
    if len(tags) > _MOST:
        raise Invalid(f"tags: at most {_MOST}, not {len(tags)}")
    for name, value in tags.items():
        if not _NAME.fullmatch(name):
            raise Invalid(f"tags: {name[:70]!r} is no name such as team: use a-z, 0-9, and . _ -")
        if not 0 < len(value) <= _LONGEST or not value.isprintable() or "\x1f" in value:
            raise Invalid(f"tags: {name} needs a value of 1 to {_LONGEST} printable characters")


def put(
    tx: Tx, subject: UUID, tags: Mapping[str, str], *, tenant_id: UUID | None, now: datetime
) -> None:
    """Call a key, lease or window by these from now on, instead of what it was called before.

    Args:
        tx: of the caller.
        subject: its id.
        tags: all of them; none takes them away.
        tenant_id: whose it must be; None: anybody's.
        now: from when on.

    Raises:
        Invalid: a tag cannot be one.
        NotFound: there is no such thing, or it is another tenant's.
    """
    check(tags)
    owner = _owner(tx, subject, tenant_id)
    if get(tx, subject, tenant_id=tenant_id) == dict(tags):
        return
    row = {"subject": subject, "tenant_id": owner, "tags": Jsonb(dict(tags)), "now": now}
    tx.execute(QUERIES["insert_tagging"], row)


def get(tx: Tx, subject: UUID, *, tenant_id: UUID | None) -> dict[str, str]:
    """Raises NotFound: there is no such thing, or it is another tenant's."""
    _owner(tx, subject, tenant_id)
    row = one(tx, QUERIES["get_tagging"], {"subject": subject})
    return {} if row is None else dict(row["tags"])


def _owner(tx: Tx, subject: UUID, tenant_id: UUID | None) -> UUID:
    row = one(tx, QUERIES["get_owner_of_tagged"], {"subject": subject, "tenant_id": tenant_id})
    if row is None:
        raise NotFound(f"there is no key, lease or reservation {subject} to tag")
    owner: UUID = row["tenant_id"]
    return owner
