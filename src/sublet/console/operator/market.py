"""What may be sold and for how much: surplus, prices, signals, models, returns, stress."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.db import Tx, load_queries
from sublet.core.errors import Invalid
from sublet.finance.statement import By
from sublet.fleet import store as fleet
from sublet.market import bids
from sublet.planner import store as plans

QUERIES: Final = load_queries("sublet.console")
_LENGTHS: Final = ("1h", "4h", "24h")
_DAYS: Final = 7
_WEEK: Final = 28  # days that the idle hours of the week are the mean of


async def show_surplus(visit: Visit) -> Response:
    """Show what may be promised in the coming days, at which bid price, and what sat idle."""
    found = await visit.api.get("/v1/surplus")
    names = [pool["name"] for pool in found["pools"]]
    name = visit.asked("pool") or (names[0] if names else "")
    length = visit.asked("length", "1h")
    if (names and name not in names) or length not in _LENGTHS:
        raise Invalid("pool, length: choose one of those that are offered")
    now = visit.site.ground.clock.now()

    def load(tx: Tx) -> dict[str, Any]:
        plan = plans.get_plan(tx, name)
        asked = bids.find(tx, name, now=now)
        samples = fleet.list_samples(tx, since=now - timedelta(days=_WEEK)).get(name)
        return {
            "calendar": None if plan is None else _calendar(plan.plan, length),
            "bids": None if asked is None else _bids(asked, now),
            "idle": None if samples is None else _idle_week(samples.slots, samples.gpus,
                                                            samples.running),
        }  # fmt: skip

    parts = await visit.db(load)
    pool = next((one for one in found["pools"] if one["name"] == name), None)
    return visit.page(
        "operator/surplus.html", title="Surplus", pools=names, pool=pool, length=length,
        lengths=_LENGTHS, confidence=found["confidence"], **parts,
    )  # fmt: skip


def _calendar(plan: Mapping[str, Any], length: str) -> dict[str, Any] | None:
    """Return a heat map of what could be promised from each coming hour on, by day."""
    later = plan.get("later", {}).get(length, [])
    if not later:
        return None
    start = datetime.fromisoformat(plan["as_of"])
    begin = start.replace(minute=0, second=0, microsecond=0)
    days = [begin.date() + timedelta(days=day) for day in range(_DAYS + 1)]
    values: list[list[float | None]] = [[None] * 24 for _ in days]
    for hour, count in enumerate(later):
        at = begin + timedelta(hours=hour)
        day = (at.date() - days[0]).days
        if day < len(days):
            values[day][at.hour] = count
    return {
        "kind": "heat", "unit": "GPUs", "rows": [f"{day:%a %d %b}" for day in days],
        "columns": [f"{hour:02d}:00" for hour in range(24)], "values": values,
    }  # fmt: skip


def _bids(asked: bids.Bids, now: datetime) -> dict[str, Any]:
    size = timedelta(hours=asked.slot_hours)
    return {
        "kind": "time", "start": asked.made_at.timestamp(), "step": size.total_seconds(),
        "unit": "usd", "now": now.timestamp(),
        "series": [
            {"name": "of whatever is lendable", "key": "interruptible", "line": True,
             "values": [price / 1e9 for price in asked.any]},
            {"name": "firm", "key": "contract", "line": True,
             "values": [(one + two) / 1e9 for one, two in zip(asked.any, asked.firm, strict=True)]},
        ],
    }  # fmt: skip


def _idle_week(slots: Sequence[int], gpus: Sequence[int], running: Sequence[int]) -> dict[str, Any]:
    """Return the mean of idle GPUs at each hour of the week, of UTC."""
    sums = [[0.0] * 24 for _ in range(7)]
    counts = [[0] * 24 for _ in range(7)]
    for slot, total, held in zip(slots, gpus, running, strict=True):
        at = datetime.fromtimestamp(slot, UTC)
        sums[at.weekday()][at.hour] += max(total - held, 0)
        counts[at.weekday()][at.hour] += 1
    values = [
        [round(total / count, 1) if count else None for total, count in zip(*rows, strict=True)]
        for rows in zip(sums, counts, strict=True)
    ]
    return {
        "kind": "heat", "unit": "GPUs idle", "values": values,
        "rows": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
        "columns": [f"{hour:02d}:00" for hour in range(24)],
    }  # fmt: skip


async def show_market(visit: Visit) -> Response:
    """Show the price book, what trades paid, and how idle capacity was taken."""
    prices, offers, signals, trades = await asyncio.gather(
        visit.api.get("/v1/prices"),
        visit.api.get("/v1/offers"),
        visit.api.get("/v1/signals"),
        visit.api.get("/v1/trades"),
    )
    return visit.page(
        "operator/market.html", title="Market", prices=prices["items"], offers=offers["items"],
        signals=signals["items"], index=_index(trades["items"]),
    )  # fmt: skip


def _index(trades: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what a GPU-hour was paid by day and pool, as lines."""
    if not trades:
        return None
    days = sorted({str(one["day"])[:10] for one in trades})
    first = datetime.fromisoformat(days[0]).replace(tzinfo=UTC)
    count = (datetime.fromisoformat(days[-1]).replace(tzinfo=UTC) - first).days + 1
    paid = {(one["pool"], str(one["day"])[:10]): float(one["usd_gpu_hour"]) for one in trades}
    names = [f"{first + timedelta(days=day):%Y-%m-%d}" for day in range(count)]
    colours = ("internal", "model", "on_demand", "contract", "reserved", "down")
    return {
        "kind": "time", "start": first.timestamp(), "step": 86_400, "unit": "usd", "height": 220,
        "series": [
            {"name": pool, "key": colours[place % len(colours)], "line": True,
             "values": [paid.get((pool, name)) for name in names]}
            for place, pool in enumerate(sorted({one["pool"] for one in trades}))
        ],
    }  # fmt: skip


async def set_price(visit: Visit) -> Response:
    """Set a price from now on; what was sold keeps the price that it was sold at."""
    sku = visit.must("sku")
    known = await visit.api.get("/v1/prices")
    before = next((one for one in known["items"] if one["sku"] == sku), None)
    body = {
        "usd": visit.must("usd"),
        "per": "hour" if sku.startswith("lease:") else "million_tokens",
        "exception": visit.said("exception"),
    }
    after = await visit.api.put(f"/v1/prices/{sku}", body)
    visit.note(subject=sku, before=before, after=after)
    return visit.go_to("/market", f"{sku} costs {body['usd']} USD from now on.")


async def show_models(visit: Visit) -> Response:
    deployments, economics, suppliers, buying = await asyncio.gather(
        visit.api.get("/v1/deployments"),
        visit.api.get("/v1/economics"),
        visit.api.get("/v1/suppliers"),
        visit.api.get("/v1/buying"),
    )
    now = visit.site.ground.clock.now()
    start = now.replace(minute=now.minute // 10 * 10, second=0, microsecond=0) - timedelta(hours=24)

    def load(tx: Tx) -> dict[str, Any]:
        replicas = tx.execute(QUERIES["live_replicas"]).fetchall()
        tokens = tx.execute(QUERIES["tokens"], {"since": start}).fetchall()
        return {"replicas": replicas, "tokens": _tokens(tokens, start, now)}

    found = await visit.db(load)
    return visit.page(
        "operator/models.html", title="Models", deployments=deployments["items"],
        economics={one["model"]: one for one in economics["items"]},
        suppliers=suppliers["items"], buying=buying["items"], **found,
    )  # fmt: skip


def _tokens(
    rows: Sequence[Mapping[str, Any]], start: datetime, now: datetime
) -> dict[str, Any] | None:
    if not rows:
        return None
    steps = int((now - start).total_seconds() // 600) + 1
    series: dict[str, list[float]] = {}
    for row in rows:
        place = int((row["at"] - start).total_seconds() // 600)
        if 0 <= place < steps:
            series.setdefault(row["model"], [0.0] * steps)[place] = row["tokens"] / 600
    colours = ("model", "on_demand", "contract", "internal", "reserved", "idle", "down")
    return {
        "kind": "time", "start": start.timestamp(), "step": 600, "unit": "tokens/s", "height": 220,
        "series": [
            {"name": name, "key": colours[place % len(colours)],
             "values": [round(value, 3) for value in values]}
            for place, (name, values) in enumerate(sorted(series.items()))
        ],
    }  # fmt: skip


async def serve_model(visit: Visit) -> Response:
    """Start or stop serving a model."""
    name, wanted = visit.must("name"), visit.must("wanted") == "yes"
    known = await visit.api.get("/v1/deployments")
    before = next((one for one in known["items"] if one["name"] == name), None)
    after = await visit.api.patch(f"/v1/deployments/{name}", {"wanted": wanted})
    visit.note(subject=name, before=before and before["wanted"], after=after["wanted"])
    return visit.go_to("/models", f"{name} is {'served' if wanted else 'no longer served'}.")


async def show_returns(visit: Visit) -> Response:
    """Show what the capital earned, by lot, pool, model of GPU, or product."""
    by, start, end = visit.asked("by", "lot"), visit.asked("from"), visit.asked("to")
    found = await visit.api.get(
        "/v1/returns", **{"by": by, "from": start or None, "to": end or None}
    )
    assets = await visit.api.get("/v1/assets")
    uses = (
        "internal",
        "contract",
        "reserved",
        "on_demand",
        "interruptible",
        "model",
        "idle",
        "down",
    )
    chart = {
        "kind": "bars", "unit": "GPU-hours", "labels": [line["name"] for line in found["lines"]],
        "series": [
            {"name": use.replace("_", " "), "key": use,
             "values": [line["gpu_hours"].get(use, 0.0) for line in found["lines"]]}
            for use in uses
            if any(line["gpu_hours"].get(use) for line in found["lines"])
        ],
    }  # fmt: skip
    return visit.page(
        "operator/returns.html", title="Returns", found=found, chart=chart, by=by,
        choices=tuple(By), assets=assets["items"],
    )  # fmt: skip


async def show_stress(visit: Visit) -> Response:
    """Follow a fleet's cash through a scenario, with the sliders where the reader put them."""
    from sublet.console.operator.stress import SLIDERS, play  # noqa: PLC0415 -- numpy is slow to load

    asked = {name: visit.asked(name) for name in ("scenario", *(one.key for one in SLIDERS))}
    found = await run_in_threadpool(play, asked)
    return visit.page("operator/stress.html", title="Stress", **found)
