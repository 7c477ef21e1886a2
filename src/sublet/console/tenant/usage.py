"""What was used and what it cost, by day and whatever else; budgets."""

import csv
import io
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

from starlette.responses import Response

from sublet.console import table
from sublet.console.view import link
from sublet.console.visit import Visit
from sublet.core.errors import Invalid

BY: Final = ("model", "key", "pool", "lease", "product")
_PART: Final = 1000  # the most rows that the API gives at once
_PARTS: Final = 20
_COLOURS: Final = ("on_demand", "internal", "model", "contract", "interruptible", "reserved")
_REST: Final = "all others"


async def show(visit: Visit) -> Response:
    """Show charges by day and one thing more; a file, where the address asks for it."""
    by = visit.asked("by", "model")
    tag_name = by.removeprefix("tag:")
    if by not in BY and not (by.startswith("tag:") and tag_name):
        raise Invalid(f"by: choose one of {', '.join(BY)}, or tag:NAME")
    only = {name: visit.asked(name) or None for name in ("model", "key", "pool", "lease", "tag")}
    period = {name: visit.asked(name) or None for name in ("from", "until")}
    rows, told = await _rows(visit, by, only | _days(visit))
    if visit.asked("format") == "csv":
        return _file(rows)
    forecast = await visit.api.get("/v1/usage/forecast", **only)
    groups = _groups(rows)
    asked = {"by": by, **period, **only}

    def narrowed(group: dict[str, Any]) -> str | None:
        """Return the address that shows this group alone, by model or by key."""
        name = "tag" if by.startswith("tag:") else by
        if name == "product" or not group["name"]:
            return None
        value = f"{tag_name}={group['name']}" if name == "tag" else group["name"]
        return link("/usage", **(asked | {name: value, "by": "key" if by == "model" else "model"}))

    for group in groups:
        group["href"] = narrowed(group)
    return visit.page(
        "tenant/usage.html",
        title="Usage",
        by=by,
        tag_name=tag_name if by.startswith("tag:") else "",
        told=told,
        until=date.fromisoformat(told["to"]) - timedelta(days=1),
        groups=groups,
        total=sum(group["usd"] for group in groups),
        chart=_chart(rows, groups, told) if rows else None,
        forecast=forecast,
        only={name: value for name, value in only.items() if value is not None},
        without=lambda name: link("/usage", **(asked | {name: None})),
        asked=asked,
        csv=link("/usage", **asked, format="csv"),
    )


def _days(visit: Visit) -> dict[str, str | None]:
    """Return the period as the API has it: people name the last day, it the day after.

    Raises:
        Invalid: it is no day.
    """
    days: dict[str, str | None] = {"from": visit.asked("from") or None, "to": None}
    if until := visit.asked("until"):
        try:
            days["to"] = str(date.fromisoformat(until) + timedelta(days=1))
        except (ValueError, OverflowError):
            raise Invalid("until: must be a day such as 2026-01-31") from None
    return days


async def _rows(
    visit: Visit, by: str, asked: dict[str, str | None]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row a day and group, with `group` in it, and what the API says of the period."""
    rows: list[dict[str, Any]] = []
    offset: int | None = 0
    told: dict[str, Any] = {}
    name = "tag" if by.startswith("tag:") else by
    for _ in range(_PARTS):
        told = await visit.api.get(
            "/v1/usage", by=["day", by], limit=_PART, offset=offset, **asked
        )  # fmt: skip
        rows += [one | {"group": one[name] or ""} for one in told["items"]]
        offset = told["next_offset"]
        if offset is None:
            return rows, told
    raise Invalid("from, to: this is too much to show at once; choose a shorter time")


def _groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums of each group over all days, dearest first."""
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        group = sums.setdefault(
            row["group"],
            {"name": row["group"], "usd": 0.0, "gpu_hours": 0.0, "input": 0, "output": 0, "charges": 0},
        )  # fmt: skip
        group["usd"] += float(row["amount_usd"])
        group["gpu_hours"] += row["gpu_hours"]
        group["input"] += row["input_tokens"]
        group["output"] += row["output_tokens"]
        group["charges"] += row["charges"]
    return sorted(sums.values(), key=lambda one: (-one["usd"], one["name"]))


def _chart(
    rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], told: dict[str, Any]
) -> dict[str, Any]:
    """Return bars a day: the dearest groups, and all others together."""
    start, last = date.fromisoformat(told["from"]), date.fromisoformat(max(r["day"] for r in rows))
    days = [str(start + timedelta(days=n)) for n in range((last - start).days + 1)]
    shown = [group["name"] for group in groups[: len(_COLOURS)]]
    more = len(groups) > len(shown)
    values = {name: [0.0] * len(days) for name in [*shown, *([_REST] if more else [])]}
    place = {day: at for at, day in enumerate(days)}
    for row in rows:
        name = row["group"] if row["group"] in values else _REST
        values[name][place[row["day"]]] += float(row["amount_usd"])
    colours = [*_COLOURS[: len(shown)], *(["down"] if more else [])]
    return {
        "kind": "bars",
        "unit": "usd",
        "labels": days,
        "series": [
            {"name": name or "none", "colour": colour, "values": found}
            for colour, (name, found) in zip(colours, values.items(), strict=True)
        ],
    }


def _file(rows: Sequence[dict[str, Any]]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text)
    names = (
        "day", "group", "amount_usd", "gpu_hours", "input_tokens", "output_tokens", "charges",
    )  # fmt: skip
    writer.writerow(names)
    writer.writerows([[table.plain(row[name]) for name in names] for row in rows])
    return table.csv_file("usage", text.getvalue())


async def show_budgets(visit: Visit) -> Response:
    told = await visit.api.get("/v1/budgets")
    return visit.page(
        "tenant/budgets.html",
        title="Budgets",
        budgets=told["items"],
        secret=told["webhook_secret"] if "manage" in visit.rights else None,
        keys=sorted({key["name"] for key in (await visit.api.get("/v1/keys"))["items"]}),
    )


async def put_budget(visit: Visit) -> Response:
    name = visit.must("name")
    try:
        percents = [int(one) for one in (visit.said("percents") or "50, 80, 100").split(",")]
    except ValueError:
        raise Invalid("tell at: must be percents such as 50, 80, 100") from None
    wanted = {
        "amount_usd": visit.must("amount"),
        "key": visit.said("key"),
        "tag": visit.said("tag"),
        "percents": percents,
        "email": visit.said("email") or "",
        "webhook": visit.said("webhook") or "",
    }
    known = {one["name"]: one for one in (await visit.api.get("/v1/budgets"))["items"]}
    made = await visit.api.put(f"/v1/budgets/{name}", wanted)
    visit.note(subject=name, before=known.get(name), after=made)
    return visit.go_to("/budgets", f"{name}: saved.")


async def remove_budget(visit: Visit) -> Response:
    name = visit.must("name")
    await visit.api.delete(f"/v1/budgets/{name}")
    visit.note(subject=name)
    return visit.go_to("/budgets", f"{name} is gone.")
