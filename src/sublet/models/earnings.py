"""What deployments earn, from what was charged, and what their GPUs cost: read, summed, weighed."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sublet.core.db import Database, Tx, load_queries, one
from sublet.core.errors import NotFound, Refused
from sublet.core.money import NANOS, Rate
from sublet.fleet import store as fleet
from sublet.market import bids
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.floor import below
from sublet.market.price import Price, Tier, lease_sku, output_sku
from sublet.models import catalogue, store
from sublet.models.deployment import Deployment, Replica, ReplicaState
from sublet.models.economics import WINDOW, Economics, Rates, Seen, token_floor, weigh, worth
from sublet.models.replica.recipe import Recipe

QUERIES: Final = load_queries("sublet.models", "earnings.sql")
_MOST_ROWS: Final = 50_000  # of one step
_SETTLED: Final = timedelta(seconds=10)  # after it, what has a lower number has been committed
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One deployment's economics, and what they rest on."""

    deployment: Deployment
    pool: str | None
    seen: Seen
    rates: Rates
    economics: Economics


def sum_up(db: Database, *, now: datetime) -> int:
    """Sum up what was charged since the last time; return up to which row, 0 where nothing is new.

    Raises:
        Unavailable: the database did not answer.
    """
    with db.transaction() as tx:
        mark = one(tx, QUERIES["lock_mark"], {})
        assert mark is not None
        asked = {"after": mark["record"], "most": _MOST_ROWS, "before": now - _SETTLED}
        end = one(tx, QUERIES["find_end"], asked)
        if end is None or end["record"] is None:
            return 0
        tx.execute(QUERIES["sum_up"], {"after": mark["record"], "up_to": end["record"]})
        tx.execute(QUERIES["set_mark"], {"record": end["record"]})
        return int(end["record"])


def report(tx: Tx, *, since: datetime, now: datetime) -> list[Report]:
    """Return the economics of every deployment over a time."""
    used = {
        row["model"]: row for row in tx.execute(QUERIES["list_used"], {"since": since, "now": now})
    }
    leased = _leased(tx, since=since, now=now)
    found = []
    for deployment in store.list_deployments(tx):
        try:
            recipe = catalogue.recipe_of(tx, deployment)
        except NotFound:  # of a recipe that is gone nothing is known
            continue
        pool, hours = _most_used(leased.get(deployment.name, {}))
        pool = pool or _first_pool(tx, recipe)
        seen = _seen(tx, deployment, recipe, used.get(deployment.name), hours)
        rates = _rates(tx, deployment, pool, now=now)
        found.append(
            Report(
                deployment=deployment,
                pool=pool,
                seen=seen,
                rates=rates,
                economics=weigh(seen, rates),
            )
        )
    return found


def worths(tx: Tx, *, now: datetime) -> dict[str, int | None]:
    """Return how many replicas of each deployment earn more than leases would pay."""
    up: dict[str, list[Replica]] = defaultdict(list)
    for replica in store.list_live_replicas(tx):
        if replica.state in (ReplicaState.STARTING, ReplicaState.READY):
            up[replica.deployment].append(replica)
    found: dict[str, int | None] = {}
    for one_ in report(tx, since=now - WINDOW, now=now):
        name = one_.deployment.name
        ready = [replica.ready_at for replica in up[name]]
        newest = (
            None if None in ready else max((at for at in ready if at is not None), default=None)
        )
        found[name] = worth(
            one_.seen, one_.rates, replicas=len(ready), newest_ready_at=newest, now=now
        )
    return found


def set_token_price(
    tx: Tx,
    model: str | None,
    sku: str,
    rate: Rate,
    *,
    exception: str | None,
    now: datetime,
    **more: Any,
) -> Price:
    """Price something, such as a model's tokens. Output is not sold below what it costs without a named exception.

    What it costs is known where the pool has a cost and the model was measured; see `sublet models
    economics`. `more` is as `market.service.set_price` has it.

    Raises:
        Refused: it is below, and no exception is named.
    """
    least = None
    if model is not None and sku == output_sku(model):
        least = floor_of(tx, model)
    if least is None or not below(rate, least[1]):
        return pricing.set_price(tx, sku, rate, exception=exception, now=now, **more)
    floor, needed = least
    if exception is None or not exception.strip():
        usd = needed.nanos / NANOS
        raise Refused(
            f"a million output tokens of {model} cost {usd:.6f} USD when its replicas are full, and"
            " this is less: raise it, or name why it may be lower as the exception"
        )
    price = pricing.set_price(tx, sku, rate, exception=None, now=now, **more)
    pricing.let_pass(tx, price, floor, exception, now=now)
    return price


def floor_of(tx: Tx, model: str) -> tuple[pricing.Floor, Rate] | None:
    """Return what makes the floor of a model's output tokens, and it; None: it is not known."""
    found = next((one_ for one_ in store.list_deployments(tx) if one_.name == model), None)
    if found is None:
        return None
    entry = catalogue.get(tx, model, tenant_id=None)
    if entry.recipe is None or entry.tokens_per_second is None:
        return None
    pool = _first_pool(tx, entry.recipe)
    floor = None if pool is None else pricing.find_floor(tx, pool)
    if floor is None:
        return None
    hour = floor.rate.nanos * 3600 // floor.rate.per
    nanos = token_floor(
        cost_nanos=hour, gpus=entry.recipe.gpus, tokens_per_second=entry.tokens_per_second
    )
    return floor, replace(floor.rate, nanos=nanos, per=1_000_000)


def _leased(tx: Tx, *, since: datetime, now: datetime) -> dict[str, dict[str, float]]:
    """Return {deployment: {pool: GPU-hours}}."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in tx.execute(QUERIES["list_leased"], {"since": since, "now": now}):
        found[row["deployment"]][row["pool"]] += row["gpu_seconds"] / 3600
    return found


def _most_used(hours: Mapping[str, float]) -> tuple[str | None, float]:
    pool = max(hours, key=lambda name: hours[name], default=None)
    return pool, sum(hours.values())


def _first_pool(tx: Tx, recipe: Recipe) -> str | None:
    return next(
        (pool.name for pool in fleet.list_pools(tx) if recipe.cpu or pool.name != "cpu"), None
    )


def _seen(
    tx: Tx, deployment: Deployment, recipe: Recipe, used: Mapping[str, Any] | None, hours: float
) -> Seen:
    try:
        measured = catalogue.get(tx, deployment.name, tenant_id=None).tokens_per_second
    except NotFound:  # a deployment older than the catalogue
        measured = recipe.tokens_per_second
    return Seen(
        gpus=recipe.gpus,
        gpu_hours=hours,
        requests=0 if used is None else used["requests"],
        input_tokens=0 if used is None else used["input_tokens"],
        output_tokens=0 if used is None else used["output_tokens"],
        revenue_nanos=0 if used is None else int(used["nanos"]),
        tokens_per_second=measured,
    )


def _rates(tx: Tx, deployment: Deployment, pool: str | None, *, now: datetime) -> Rates:
    output = market.find_price(tx, output_sku(deployment.name))
    price = None if output is None else output.rate.nanos / output.rate.per
    if pool is None:
        return Rates(rental_nanos=None, cost_nanos=None, bid_nanos=None, output_nanos=price)
    rental = market.find_price(tx, lease_sku(pool, deployment.scaling.tier))
    floor = pricing.find_floor(tx, pool)
    asked = bids.find(tx, pool, now=now)
    firm = deployment.scaling.tier is Tier.ON_DEMAND
    bid = None if asked is None else asked.least(start=now, length=_HOUR, firm=firm)
    return Rates(
        rental_nanos=None if rental is None else _hourly(rental.rate),
        cost_nanos=None if floor is None else floor.cost.full_nanos,
        bid_nanos=None if bid is None else _hourly(bid),
        output_nanos=price,
    )


def _hourly(rate: Rate) -> int:
    return rate.nanos * 3600 // rate.per
