"""`sublet surplus`: what may be sold of each pool, and for how long."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import typer

from sublet.cli.command import Session, command
from sublet.cli.failure import one_line
from sublet.cli.output import Column, Document, instant, print_json, print_table

_POOL: Final = (
    Column("pool", "name"),
    Column("GPUs", "gpus", right=True),
    Column("internal", "internal_running", right=True),
    Column("pending", "internal_pending", right=True),
    Column("leased", "leased", right=True),
    Column("firm 1 h", "1h", right=True),
    Column("4 h", "4h", right=True),
    Column("24 h", "24h", right=True),
    Column("interruptible", "interruptible", right=True),
    Column("reserve", "reserve", right=True),
    Column("sellable now", "sellable", right=True),
    Column("as of", "as_of", instant),
)


def add_to(root: typer.Typer) -> None:
    command(root, "surplus", examples=("sublet surplus", "sublet surplus --json"))(surplus)


def surplus(session: Session) -> None:
    """Show what may be sold of each pool: firm for 1, 4 and 24 hours, and interruptible.

    With what internal jobs will hold, and why no more is sold. What leases hold
    counts as free: internal jobs do not want it. Planned anew every five minutes.
    """
    with session.operator() as api:
        document = api.get("/v1/surplus")
    if session.json:
        print_json(document)
        return
    pools: list[Document] = document.get("pools") or []
    print_table([_row(pool) for pool in pools], _POOL)
    for pool in pools:
        for line in _about(pool):
            print(line)


def _row(pool: Document) -> Document:
    plan = pool.get("plan") or {}
    return {**pool, **{name: plan.get(name) for name in ("interruptible", "reserve", "as_of")},
            **(plan.get("firm") or {})}  # fmt: skip


def _about(pool: Document) -> Iterator[str]:
    """Say of a pool what is forecast and why no more is sold."""
    plan = pool.get("plan")
    yield ""
    if plan is None:
        yield f"{one_line(pool['name'])}: not planned yet; the first plan comes within seconds"
        return
    hours = plan["known_hours"]
    known = f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
    yield f"{one_line(pool['name'])}: {known} known, {plan['known_share']:.0%} of the time since the first"
    for reason in plan["reasons"]:
        about = f" ({', '.join(reason['windows'])})" if reason["windows"] else ""
        yield f"  {reason['reason']}{about}: {one_line(reason['why'])}"
    yield from _band(plan["band"])


def _band(band: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not band:
        return
    heads = [_ahead(reach["ahead_seconds"]) for reach in band]
    yield f"  {'internal jobs will hold, so far ahead':38}" + "".join(
        f"{head:>9}" for head in heads
    )
    for quantile in band[0]["demand"]:
        name = f"{float(quantile):.0%} of the time no more than"
        counts = "".join(f"{reach['demand'][quantile]:>9,}" for reach in band)
        yield f"  {name:38}{counts}"


def _ahead(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds // 60} min"
