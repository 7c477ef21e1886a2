"""An audit for a terminal: what sat idle, drawn in text."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sublet.cli import plots
from sublet.cli.failure import one_line
from sublet.cli.output import Column, Document, print_table, text

if TYPE_CHECKING:
    from sublet.planner.idle.audit import Audit

_WIDEST: Final = 110
_HEIGHT: Final = 8
_MOST_POOLS: Final = 30
_MOST_QUOTAS: Final = 12
_WORDS: Final = {"24h": "firm, 24 h", "4h": "firm, 4 h", "1h": "firm, 1 h",
                 "interruptible": "interruptible"}  # fmt: skip


def share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else ""


def count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ""


def usd(value: object) -> str:
    """Show an estimate in whole dollars."""
    return f"${round(float(value)):,}" if isinstance(value, str) else ""


def length(seconds: int) -> str:
    """Show 300 as "5 min", 14400 as "4 h", 259200 as "3 d"."""
    if seconds >= 3 * 86_400:
        return f"{seconds // 86_400} d"
    return f"{seconds // 3_600} h" if seconds >= 3_600 else f"{seconds // 60} min"


_POOLS: Final = (
    Column("pool", "name"),
    Column("GPUs", "gpus", count, right=True),
    Column("GPU-hours", "gpu_hours", count, right=True),
    Column("idle", "idle_share", share, right=True),
    Column("idle GPU-hours", "idle_gpu_hours", count, right=True),
    Column("in runs ≥1 h", "in_1h", share, right=True),
    Column("≥24 h", "in_24h", share, right=True),
    Column("beside waiting", "beside", share, right=True),
    Column("worth", "hindsight_worth_usd", usd, right=True),
)
_QUOTAS: Final = (
    Column("quota", "name", lambda name: text(name) or "(none)"),
    Column("pool", "pool"),
    Column("jobs", "jobs", count, right=True),
    Column("GPU-hours", "running_gpu_hours", count, right=True),
    Column("of pool's use", "share", share, right=True),
    Column("mean GPUs", "mean_gpus", count, right=True),
    Column("peak", "peak_gpus", count, right=True),
    Column("quota", "nominal_gpus", count, right=True),
    Column("waited GPU-h", "waiting_gpu_hours", count, right=True),
)
_MIX: Final = (
    Column("sold as", "kind"),
    Column("GPU-hours", "gpu_hours", count, right=True),
    Column("of idle", "share", share, right=True),
    Column("USD per GPU-hour", "price", text, right=True),
    Column("worth", "worth_usd", usd, right=True),
)


def print_report(audit: "Audit", document: Document) -> None:
    """Print the audit, as wide as the terminal allows."""
    width = min(shutil.get_terminal_size((100, 40)).columns, _WIDEST)
    total = document["total"]
    for line in _summary(document, total):
        print(line)
    print()
    for line in _plot(audit, width):
        print(line)
    _head("In unbroken runs of")
    for line in _runs(total["idle_runs"], width):
        print(line)
    _head("Where")
    pools = document["pools"]
    print_table([_pool(pool) for pool in pools[:_MOST_POOLS]], _POOLS)
    _and_more(len(pools), _MOST_POOLS, "pools")
    quotas = document["quotas"]
    if quotas:
        _head("Whose quota")
        columns = [c for c in _QUOTAS if c.key != "nominal_gpus" or _any_nominal(quotas)]
        print_table(quotas[:_MOST_QUOTAS], columns)
        _and_more(len(quotas), _MOST_QUOTAS, "quotas")
    _head("What could have been sold, knowing how it went on")
    prices = document["prices_usd_per_gpu_hour"]
    mix = total["hindsight_mix"]
    print_table(
        [{"kind": _WORDS[kind], "price": prices[kind], **sold} for kind, sold in mix.items()], _MIX
    )
    for line in _alone(total):
        print(line)
    _print_replay(document)
    _print_doubts(document)


def _head(words: str) -> None:
    print()
    print(f"\x1b[1m{words}\x1b[0m" if sys.stdout.isatty() else words)


def _and_more(there: int, shown: int, what: str) -> None:
    if there > shown:
        print(f"… and {there - shown} more {what}; --json has them all")


def _summary(document: Document, total: Mapping[str, Any]) -> Iterator[str]:
    days = _days(document)
    yield f"{document['from'][:16]} to {document['to'][:16]} UTC, {days:,.1f} days"
    yield ""
    idle = total["idle_gpu_hours"]
    yield (
        f"{share(total['idle_share'])} of all GPU-hours sat idle: {idle:,.0f} of"
        f" {total['gpu_hours']:,.0f}"
    )
    at_least = {run["at_least_s"]: run["share_at_least"] for run in total["idle_runs"]}
    if idle:
        yield (
            f"{share(at_least[3_600])} of that in unbroken runs of an hour or more,"
            f" {share(at_least[86_400])} of a day or more"
        )
        beside = total["idle_beside_waiting_gpu_hours"] / idle
        if beside > 0.005:
            yield f"{share(beside)} of it while jobs of the same pool waited for as many GPUs"
        yield f"worth {usd(total['hindsight_worth_usd'])} at most, at the prices below"


def _days(document: Document) -> float:
    first, last = (datetime.fromisoformat(document[name]) for name in ("from", "to"))
    return (last - first).total_seconds() / 86_400


def _plot(audit: "Audit", width: int) -> Iterator[str]:
    """Draw the use of all pools together."""
    from sublet.planner.idle.report import series  # noqa: PLC0415 -- slow to load

    timelines = [pool.timeline for pool in audit.pools]
    drawn = series(timelines, points=width - 10)
    rows = plots.area(drawn.running, drawn.total, height=_HEIGHT)
    most = max((value for value in drawn.total if value is not None), default=0.0)
    labels = {0: f"{most:,.0f}", _HEIGHT // 2: f"{most / 2:,.0f}", _HEIGHT - 1: "0"}
    for i, row in enumerate(rows):
        yield f"{labels.get(i, ''):>8} {row}"
    days = len(rows[0]) * drawn.step_s / 86_400
    form = "%Y-%m-%d" if days > 3 else "%m-%d %H:%M"
    ticks = [
        f"{datetime.fromtimestamp(drawn.start + i * len(rows[0]) // 4 * drawn.step_s, UTC):{form}}"
        for i in range(5)
    ]
    yield f"{'':>8} {plots.axis(ticks, width=len(rows[0]))}"
    yield f"{'':>8} GPUs: █ in use  ░ idle; a column is {length(drawn.step_s)}"


def _runs(runs: Sequence[Mapping[str, Any]], width: int) -> Iterator[str]:
    largest = max((run["share"] or 0.0 for run in runs), default=0.0) or 1.0
    for run in runs:
        low, high = run["at_least_s"], run["below_s"]
        name = (
            f"over {length(low)}"
            if high is None
            else f"under {length(high)}" if low == 0 else f"{length(low)} to {length(high)}"
        )  # fmt: skip
        part = run["share"] or 0.0
        drawn = plots.bar(part / largest, width=max(width - 50, 10))
        yield f"{name:>16} {part:>7.1%} {run['gpu_hours']:>12,.0f} GPU-h  {drawn}".rstrip()


def _pool(pool: Document) -> Document:
    at_least = {run["at_least_s"]: run["share_at_least"] for run in pool["idle_runs"]}
    idle = pool["idle_gpu_hours"]
    return {
        **pool,
        "in_1h": at_least[3_600],
        "in_24h": at_least[86_400],
        "beside": pool["idle_beside_waiting_gpu_hours"] / idle if idle else None,
    }


def _any_nominal(quotas: Sequence[Mapping[str, Any]]) -> bool:
    return any(quota["nominal_gpus"] is not None for quota in quotas)


def _alone(total: Mapping[str, Any]) -> Iterator[str]:
    alone = total["hindsight_firm_alone"]
    parts = ", ".join(
        f"{share(alone[name]['share'])} in windows of {name.removesuffix('h')} h"
        for name in ("1h", "4h", "24h")
        if alone[name]["share"] is not None
    )
    if parts:
        yield f"Sold in one length alone: {parts}."
    yield "Windows start on the hour, at 0, 4, 8 … and at 0 o'clock UTC. Nobody knows beforehand how"
    yield "it goes on, so these are the most that can be had, not a forecast."


def _print_replay(document: Document) -> None:
    policy, found = document["policy"], document["total"]["replay"]
    if policy is None:
        return
    _head(f"What the policy {one_line(policy)} would have sold, deciding from the past alone")
    if found is None:
        print("The record is too short: a week is learnt from before anything is scored.")
        return
    idle = found["idle_gpu_hours"] or 1.0
    print(f"{found['from'][:16]} to {found['to'][:16]} UTC, after a week to learn from")
    for name, key in (
        ("firm, and kept", "firm_gpu_hours"),
        ("firm, and broken", "broken_gpu_hours"),
        ("interruptible", "interruptible_gpu_hours"),
    ):
        print(f"{name:>20} {found[key]:>12,.0f} GPU-h  {found[key] / idle:>6.1%} of idle")
    if found["broken_share"] is not None:
        print(
            f"{share(found['broken_share'])} of the firm GPU-hours broke, and were refunded and credited"
        )
    print(
        f"worth {usd(found['worth_usd'])} net of refunds and credits,"
        f" {share(found['worth_share'])} of what hindsight would have had in that time;"
        f" {found['evictions']:,} GPUs taken back, internal jobs waited"
        f" {found['late_gpu_hours']:,.0f} GPU-hours beyond the notice of ten minutes"
    )


def _print_doubts(document: Document) -> None:
    if document["notes"]:
        _head("Mind that")
        for note in document["notes"]:
            print(f"- {one_line(note)}")
    if document["skipped"]:
        _head(f"{document['skipped']:,} lines have faults")
        for fault in document["faults"]:
            print(f"- {one_line(fault['file'])}, line {fault['line']}: {one_line(fault['why'])}")
        more = document["skipped"] - len(document["faults"])
        if more > 0:
            print(f"- … and {more:,} more")
