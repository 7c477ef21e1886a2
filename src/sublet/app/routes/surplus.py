"""What may be sold of each pool, now and for how long: the newest plans."""

from typing import Any

from fastapi import APIRouter

from sublet.app.http import Operator, Ours
from sublet.fleet import store as fleet
from sublet.leases import service as leases
from sublet.planner import store as plans
from sublet.planner.store import StoredPlan
from sublet.planner.surplus import sellable_gpus

router = APIRouter(prefix="/v1")


@router.get("/surplus", tags=["fleet"])
def show_surplus(ours: Ours, _: Operator) -> dict[str, Any]:
    """Show what may be sold of each pool: firm for 1, 4 and 24 hours, and interruptible.

    `plan` is of the moment at which it was made, every five minutes, and counts what leases
    hold as free; it is null before the first. `sellable` is what may be lent at this instant.
    """
    jobs = ours.engine.internal_jobs()
    with ours.db.transaction() as tx:
        made = plans.list_plans(tx)
        pools = []
        for pool in fleet.list_pools(tx):
            pressure = leases.pressure_of(tx, pool, jobs, now=ours.clock.now())
            found = made.get(pool.name)
            pools.append(
                {
                    "name": pool.name,
                    "gpus": pool.gpus,
                    "internal_running": pressure.internal_running,
                    "internal_pending": pressure.internal_pending,
                    "leased": pressure.leased,
                    "sellable": sellable_gpus(pressure),
                    "plan": None if found is None else _shown(found),
                }
            )
    return {"confidence": ours.config.confidence, "pools": pools}


def _shown(found: StoredPlan) -> dict[str, Any]:
    """Return a plan without its hundreds of coming hours, by which windows are sold."""
    shown = {name: value for name, value in found.plan.items() if name != "later"}
    return {"made_at": found.made_at, **shown}
