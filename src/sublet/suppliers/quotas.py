"""Limits and shares in Postgres: load, `settle`, save, under the limits' locks."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sublet.core.db import Tx
from sublet.suppliers.quota import Asked, Held, Standing, settle
from sublet.suppliers.store import QUERIES, limit_of

K = TypeVar("K")


def settle_all(
    tx: Tx, asked: Mapping[int, Asked], *, now: datetime | None = None
) -> dict[int, int]:
    """Hear a process about some limits, and give it its shares.

    Args:
        tx: any transaction; it locks the limits to its end.
        asked: by limit; each at its own process' name.
        now: the present instant; None: as the database's clock has it, which all gateways share.

    Returns:
        what it holds of each; a limit that is gone is not in it.
    """
    held = {}
    for before, at in _load(tx, list(asked), lock=True):
        one = asked[before.limit.id]
        after = settle(before, one, now or at)
        _save(tx, before, after)
        share = after.shares.get(one.holder)
        held[before.limit.id] = 0 if share is None else share.held
    return held


def give_back(tx: Tx, holder: str, instance: str, *, now: datetime | None = None) -> None:
    """Let what earlier runs of a name held count as used now: they are dead."""
    row = {"holder": holder, "instance": instance}
    ids = [found["limit_id"] for found in tx.execute(QUERIES["limits_of_holder"], row)]
    nothing = Asked(holder=holder, instance=instance, used=0, flying=0, wanted=0)
    settle_all(tx, dict.fromkeys(ids, nothing), now=now)


def standings(tx: Tx) -> list[tuple[Standing, datetime]]:
    """Return how all limits stand, and when that is."""
    return _load(tx, None, lock=False)


def _load(tx: Tx, ids: Sequence[int] | None, *, lock: bool) -> list[tuple[Standing, datetime]]:
    if ids is not None and not ids:
        return []
    query = QUERIES["lock_limits"] if lock else QUERIES["read_limits"]
    rows = tx.execute(query, {"ids": ids} if ids is not None else {}).fetchall()
    given = {"ids": [row["id"] for row in rows]}
    shares: dict[int, dict[str, Held]] = {}
    for row in tx.execute(QUERIES["read_shares"], given):
        shares.setdefault(row["limit_id"], {})[row["holder"]] = Held(
            instance=str(row["instance"]),
            held=int(row["held"]),
            told=int(row["told"]),
            seen_at=row["seen_at"],
        )
    used: dict[int, dict[datetime, int]] = {}
    for row in tx.execute(QUERIES["read_uses"], given):
        used.setdefault(row["limit_id"], {})[row["slot"]] = int(row["amount"])
    return [(_standing(row, used, shares), row["now"]) for row in rows]


def _standing(
    row: Mapping[str, Any],
    used: Mapping[int, Mapping[datetime, int]],
    shares: Mapping[int, Mapping[str, Held]],
) -> Standing:
    told = row["told_amount"]
    return Standing(
        limit=limit_of(row),
        used=used.get(row["id"], {}),
        shares=shares.get(row["id"], {}),
        told_amount=None if told is None else int(told),
        told_until=row["told_until"],
        others=int(row["others"]),
        others_until=row["others_until"],
    )


def _save(tx: Tx, before: Standing, after: Standing) -> None:
    id_ = before.limit.id
    for end, amount in after.used.items():
        if before.used.get(end) != amount:
            tx.execute(QUERIES["put_use"], {"limit_id": id_, "slot": end, "amount": amount})
    over = _gone(before.used, after.used)
    if over:
        tx.execute(QUERIES["drop_uses"], {"limit_id": id_, "slots": over})
    for holder, share in after.shares.items():
        if before.shares.get(holder) != share:
            row = {
                "limit_id": id_, "holder": holder, "instance": share.instance,
                "held": share.held, "told": share.told, "seen_at": share.seen_at,
            }  # fmt: skip
            tx.execute(QUERIES["put_share"], row)
    for holder in _gone(before.shares, after.shares):
        tx.execute(QUERIES["drop_share"], {"limit_id": id_, "holder": holder})
    names = ("told_amount", "told_until", "others", "others_until")
    told = {name: getattr(after, name) for name in names}
    if told != {name: getattr(before, name) for name in names}:
        tx.execute(QUERIES["put_told"], {"id": id_, **told})


def _gone(before: Mapping[K, object], after: Mapping[K, object]) -> list[K]:
    return [key for key in before if key not in after]
