"""Whether a contract's GPUs are there when they should be; the record from which it is billed."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Database, Tx, one
from sublet.fleet.pool import Demand, Pool
from sublet.leases.store import QUERIES

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A step that runs."""

    id: UUID
    pool: str
    gpus: int
    lost_gpus: int  # that were there, and were taken back and credited
    delivered: int | None  # at once so far; None: nobody looked yet
    unpaid: bool  # its tenant cannot pay, so nothing is set aside for it


def delivered(steps: Sequence[Running], free: Mapping[str, int]) -> dict[UUID, int]:
    """Return how many GPUs of each step are there now, where that is more than ever before.

    Who signed first gets what is free first. What was there once stays delivered: if it is taken
    back, that is a promise broken, and credited as such.

    Args:
        steps: that run, in the order of their contracts.
        free: GPUs of each pool that neither internal jobs nor leases of others have.
    """
    left: dict[str, int] = defaultdict(int, free)
    for step in steps:
        left[step.pool] -= max((step.delivered or 0) - step.lost_gpus, 0)
    more = {}
    for step in steps:
        known = step.delivered or 0
        if known >= step.gpus:
            continue
        # Who is late itself is not kept waiting by others.
        some = step.gpus - known if step.unpaid else min(step.gpus - known, max(left[step.pool], 0))
        left[step.pool] -= some
        if some or step.delivered is None:
            more[step.id] = known + some
    return more


def note(
    db: Database, *, pools: Sequence[Pool], demands: Mapping[str, Demand], now: datetime
) -> None:
    """Record what of contracts' capacity is there, as soon as it is seen.

    What is seen first of a step holds from its start: nobody is called late for not looking.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        rows = tx.execute(QUERIES["list_running_steps"], {"now": now}).fetchall()
    if all(row["delivered"] is not None and row["delivered"] >= row["gpus"] for row in rows):
        return
    held = {row["pool"]: int(row["held"]) for row in rows}
    free = {}
    for pool in pools:
        demand = demands.get(pool.name, Demand(running=0, pending=0))
        free[pool.name] = (
            pool.gpus - demand.running - demand.pending - held.get(pool.name, 0)
        )  # fmt: skip
    steps = [
        Running(
            id=row["id"], pool=row["pool"], gpus=row["gpus"], lost_gpus=row["lost_gpus"],
            delivered=row["delivered"], unpaid=row["unpaid"],
        )
        for row in rows
    ]  # fmt: skip
    more = delivered(steps, free)
    if not more:
        return
    with db.transaction("contract.deliver") as tx:
        for row in rows:
            if row["id"] not in more:
                continue
            gpus = more[row["id"]]
            first = row["delivered"] is None
            at = row["starts_at"] if first else max(now.replace(microsecond=0), row["starts_at"])
            tx.execute(
                QUERIES["insert_delivery"],
                {
                    "id": row["id"], "contract_id": row["contract_id"], "gpus": gpus, "at": at,
                    "now": now,
                },
            )  # fmt: skip
            if gpus < row["gpus"]:
                log.warning(
                    "contract.late",
                    extra={"contract": row["contract_id"], "gpus": row["gpus"], "there": gpus},
                )


def most_delivered(tx: Tx, reservation_id: UUID) -> int:
    """Return how many GPUs of a step were there at once so far."""
    row = one(tx, QUERIES["get_delivered"], {"id": reservation_id})
    return 0 if row is None or row["gpus"] is None else int(row["gpus"])


def list_of(tx: Tx, reservation_id: UUID) -> list[dict[str, Any]]:
    """Return {gpus, happened_at} of what was seen of a step, in order; a window has none."""
    return tx.execute(QUERIES["list_deliveries_of"], {"id": reservation_id}).fetchall()
