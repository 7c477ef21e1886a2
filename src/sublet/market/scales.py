"""Schedules of what notices cost, in Postgres, and the prices that follow from them."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sublet.core.db import Tx, one
from sublet.core.errors import Invalid
from sublet.market.notice import Scale, Step, check
from sublet.market.price import Price, notice_sku
from sublet.market.store import QUERIES, Terms, from_row


def set_scale(
    tx: Tx, pool: str, steps: Sequence[Step], *, now: datetime, valid_from: datetime | None = None
) -> Scale:
    """Price the notices of a pool from now on, or from `valid_from`; what was sold keeps its price.

    Raises:
        Invalid: it is no schedule, or would change the past.
    """
    check(steps)
    start = now if valid_from is None else valid_from
    if start < now:
        raise Invalid(
            f"a schedule is valid from now on or later, not from {start:%Y-%m-%d %H:%M} UTC"
        )
    row = {
        "pool": pool,
        "notices": [step.notice // timedelta(seconds=1) for step in steps],
        "percents": [step.percent for step in steps],
        "happened_at": start,
        "recorded_at": now,
    }
    found = one(tx, QUERIES["insert_scale"], row)
    assert found is not None
    return _scale(found)


def find_scale(tx: Tx, pool: str, *, at: datetime) -> Scale | None:
    """Return what holds at an instant; None where the operator has said nothing."""
    return find_scales(tx, [pool], at=at).get(pool)


def find_scales(tx: Tx, pools: Collection[str], *, at: datetime) -> dict[str, Scale]:
    """Return what holds at an instant of those pools of which the operator has said something."""
    rows = tx.execute(QUERIES["get_scales"], {"pools": list(pools), "at": at})
    return {row["pool"]: _scale(row) for row in rows}


def by_notice(
    tx: Tx, terms: Terms, scale: Scale | None, notice: timedelta, *, now: datetime
) -> Terms:
    """Return what is paid, and what the list says, for a lease of that notice."""
    step = None if scale is None else scale.step(notice)
    if scale is None or step is None:
        return terms
    listed = _price_of(tx, terms.listed, scale, step, now=now)
    if terms.contracted.id == terms.listed.id:
        return Terms(contracted=listed, listed=listed)
    return Terms(contracted=_price_of(tx, terms.contracted, scale, step, now=now), listed=listed)


def _price_of(tx: Tx, base: Price, scale: Scale, step: Step, *, now: datetime) -> Price:
    rate = step.of(base.rate)
    seconds = step.notice // timedelta(seconds=1)
    row = {
        "sku": notice_sku(base.sku, seconds), "nanos": rate.nanos, "per": rate.per,
        "currency": rate.currency, "tenant_id": base.tenant_id, "base_id": base.id,
        "scale_id": scale.id, "notice_seconds": seconds, "now": now,
    }  # fmt: skip
    found = one(tx, QUERIES["get_notice_price"], row)
    found = found or one(tx, QUERIES["insert_notice_price"], row)
    # Somebody else wrote it down between the two.
    found = found or one(tx, QUERIES["get_notice_price"], row)
    assert found is not None
    return from_row(found)


def check_notices(tx: Tx) -> tuple[int, list[str]]:
    """Compare the price of every sale with what its notice cost when it was sold.

    Returns:
        how many sales there were of pools whose notices had a price, and a sentence for each that
        was sold at another.
    """
    rows = tx.execute(QUERIES["list_sales_by_notice"]).fetchall()
    wrong = []
    for row in rows:
        scale = _scale({**row, "id": row["scale_id"]})
        step = scale.step(timedelta(seconds=row["sold_notice_seconds"]))
        base = None if row["base_nanos"] is None else (int(row["base_nanos"]), row["base_per"])
        if step is None:
            right = base is None
        else:
            right = (
                base is not None
                and row["by_scale"] == scale.id
                and int(row["nanos"]) * base[1] * 100 == base[0] * row["per"] * step.percent
            )
        if not right:
            wrong.append(
                f"{row['sold']} was sold with a notice of {row['sold_notice_seconds']} s at price"
                f" {row['price_id']}, which is not what schedule {scale.id} says"
            )
    return len(rows), wrong


def _scale(row: Mapping[str, Any]) -> Scale:
    steps = zip(row["notices"], row["percents"], strict=True)
    return Scale(
        id=row["id"],
        steps=tuple(
            Step(notice=timedelta(seconds=seconds), percent=percent) for seconds, percent in steps
        ),
    )
