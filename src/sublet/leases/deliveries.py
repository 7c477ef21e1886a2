"""Whether a contract's GPUs are there when they should be; the record from which it is billed."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sublet.core.db import Database, Tx, one
from sublet.fleet.pool import Demand, Pool
from sublet.leases.delivery import Running, delivered
from sublet.leases.store import QUERIES

log = logging.getLogger(__name__)


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
