"""The operator's first page: what the fleet does, what it earns, and what needs somebody."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.responses import Response

from sublet.console.operator.attention import list_matters
from sublet.console.table import csv_file
from sublet.console.view import link
from sublet.console.visit import Visit
from sublet.core.db import Tx, load_queries
from sublet.core.errors import Invalid
from sublet.finance.store import UseStep, list_steps
from sublet.market.price import Tier, lease_sku
from sublet.market.store import find_price
from sublet.planner import store as plans

QUERIES: Final = load_queries("sublet.console")


@dataclass(frozen=True, slots=True)
class Range:
    """How far a chart looks back and ahead."""

    words: str
    back: timedelta
    ahead: timedelta
    step: timedelta


RANGES: Final[Mapping[str, Range]] = {
    "day": Range("24 hours", timedelta(days=1), timedelta(hours=6), timedelta(minutes=5)),
    "week": Range("7 days", timedelta(days=7), timedelta(hours=36), timedelta(minutes=30)),
    "month": Range("30 days", timedelta(days=30), timedelta(days=6), timedelta(hours=2)),
}
USES: Final = {
    "internal": "internal jobs", "contract": "contracts", "reserved": "reserved",
    "on_demand": "on demand", "interruptible": "interruptible", "model": "models",
    "idle": "idle", "down": "down",
}  # fmt: skip


async def show(visit: Visit) -> Response:
    chosen = visit.asked("range", "day")
    if chosen not in RANGES:
        raise Invalid(f"range: must be one of {', '.join(RANGES)}")
    pool = visit.asked("pool") or None
    now = visit.site.ground.clock.now()
    over = RANGES[chosen]

    def load(tx: Tx) -> tuple[list[UseStep], dict[str, Any], Mapping[str, Any]]:
        start = now - over.back
        steps = list_steps(tx, start, now, step=over.step, now=now)
        made = {name: found.plan for name, found in plans.list_plans(tx).items()}
        return steps, made, _money(tx, now)

    (steps, made, money), fleet, status, matters = await asyncio.gather(
        visit.remembered(("overview", chosen), 2.0, load),
        visit.api.get("/v1/fleet"),
        visit.api.get("/v1/status"),
        list_matters(visit),
    )
    pools = [one["name"] for one in fleet["pools"]]
    shown = [pool] if pool in pools else pools
    chart = usage_chart([step for step in steps if step.pool in shown],
                        [plan for name, plan in made.items() if name in shown], over, now=now)  # fmt: skip
    if visit.asked("format") == "csv":
        return csv_file("fleet", _csv(chart))
    return visit.page(
        "operator/overview.html", title="Overview", chart=chart, ranges=RANGES, range=chosen,
        pool=pool, pools=pools, fleet=_totals(fleet["pools"]), money=money,
        promise=_promise(fleet["pools"], status["internal_waits"]), matters=matters,
        csv=link("/", range=chosen, pool=pool, format="csv"),
    )  # fmt: skip


def usage_chart(
    steps: Sequence[UseStep], made: Sequence[Mapping[str, Any]], over: Range, *, now: datetime
) -> dict[str, Any]:
    """Return the chart of GPUs by use, with what internal jobs are expected to need ahead."""
    size = over.step.total_seconds()
    start = int((now - over.back).timestamp() // size * size)
    back = int((now.timestamp() - start) // size) + 1
    ahead = int(over.ahead / over.step)
    values = {use: [0.0] * back for use in USES}
    most: dict[str, float] = {}
    first: dict[str, datetime] = {}  # of a pool: before it was seen nothing of it was down
    for step in steps:
        most[step.pool] = max(most.get(step.pool, 0.0), step.healthy / size)
        first[step.pool] = min(first.get(step.pool, step.at), step.at)
    for step in steps:
        place = int((step.at.timestamp() - start) // size)
        if not 0 <= place < back:
            continue
        # The first and the last step are not whole.
        begin = max(step.at, now - over.back)
        lasted = (min(step.at + over.step, now) - begin).total_seconds()
        if lasted <= 0:
            continue
        left = step.healthy / lasted
        whole = lasted == size and step.at > first[step.pool]
        down = max(most[step.pool] - left, 0.0) if whole else 0.0
        for use, seconds in step.used.items():
            values[use][place] += seconds / lasted
            left -= seconds / lasted
        values["idle"][place] += max(left, 0.0)
        values["down"][place] += down
    low, high = _band(made, over, ahead)
    band = {
        "name": "expected need of internal jobs",
        "low": [None] * back + low,
        "high": [None] * back + high,
    }
    return {
        "kind": "time", "start": start, "step": size, "unit": "GPUs", "now": now.timestamp(),
        "series": [
            {"name": USES[use], "key": use, "values": [round(one, 2) for one in values[use]]}
            for use in USES if any(values[use])
        ],
        "band": band if any(one is not None for one in high) else None,
    }  # fmt: skip


def _band(
    made: Sequence[Mapping[str, Any]], over: Range, steps: int
) -> tuple[list[float | None], list[float | None]]:
    """Return the least and most demand expected at each step ahead, of all the plans together."""
    low: list[float | None] = [None] * steps
    high: list[float | None] = [None] * steps
    for plan in made:
        anchors = [(0.0, float(plan["demand"]), float(plan["demand"]))]
        for band in plan["band"]:
            quantiles = sorted((float(name), count) for name, count in band["demand"].items())
            anchors.append((float(band["ahead_seconds"]), quantiles[0][1], quantiles[-1][1]))
        if len(anchors) == 1:
            continue
        for step in range(steps):
            at = step * over.step.total_seconds()
            after = next((place for place, one in enumerate(anchors) if one[0] >= at), None)
            if after is None:
                break
            one, two = anchors[max(after - 1, 0)], anchors[after]
            part = (at - one[0]) / (two[0] - one[0]) if two[0] > one[0] else 0.0
            low[step] = (low[step] or 0.0) + one[1] + part * (two[1] - one[1])
            high[step] = (high[step] or 0.0) + one[2] + part * (two[2] - one[2])
    return low, high


def _money(tx: Tx, now: datetime) -> dict[str, Any]:
    """Return what was earned today and this month, and what idle GPUs would have brought."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    month = today.replace(day=1)
    row = tx.execute(QUERIES["earned"], {"today": today, "month": month}).fetchone()
    assert row is not None
    idle_hours = worth = 0.0
    for step in list_steps(tx, today, now, step=timedelta(days=1), now=now):
        idle = max(step.healthy - sum(step.used.values()), 0.0) / 3600
        price = find_price(tx, lease_sku(step.pool, Tier.INTERRUPTIBLE))
        idle_hours += idle
        worth += 0.0 if price is None else idle * price.rate.charge(3600).nanos / 1e9
    return {
        "today": float(row["today"] or 0) / 1e9, "month": float(row["month"] or 0) / 1e9,
        "idle_hours": idle_hours, "idle_usd": worth, "since": today.isoformat(),
        "month_since": month.isoformat(),
    }  # fmt: skip


def _totals(pools: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    names = ("gpus", "internal_running", "internal_pending", "leased", "idle", "sellable")
    return {name: sum(pool[name] for pool in pools) for name in names}


def _promise(
    pools: Sequence[Mapping[str, Any]], waits: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the pool whose internal jobs waited longest, measured by what was promised."""
    told = [
        {"pool": pool["name"], "promise": pool["notice_seconds"], **waits[pool["name"]]}
        for pool in pools
        if pool["name"] in waits
    ]
    return max(told, key=lambda one: one["p99_seconds"] - one["promise"], default=None)


def _csv(chart: Mapping[str, Any]) -> str:
    names = [one["key"] for one in chart["series"]]
    lines = [",".join(["start", *names])]
    lists = [one["values"] for one in chart["series"]]
    for place, row in enumerate(zip(*lists, strict=True)):
        at = datetime.fromtimestamp(chart["start"] + place * chart["step"], UTC)
        lines.append(",".join([at.isoformat(), *map(str, row)]))
    return "\n".join(lines) + "\n"
