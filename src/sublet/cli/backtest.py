"""`sublet backtest`: what the planner would have sold, and what would have come of it.

It reads a file and talks to no instance. Arrays and solvers are imported when it runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublet.cli.command import Session, command
from sublet.cli.output import Column, Document, print_json, print_table
from sublet.cli.parsing import seconds

if TYPE_CHECKING:
    from sublet.planner.curve import Curve
    from sublet.planner.portfolio import Prices
    from sublet.planner.score import Score, Share


def add_to(root: typer.Typer) -> None:
    command(
        root, "backtest",
        examples=(
            "sublet backtest pool.csv",
            "sublet backtest pool.csv --policy default --policy max-24h --from 2026-08-01",
            "sublet backtest use.csv.gz --time hour --total gpus --running demand --json",
        ),
    )(backtest)  # fmt: skip


def backtest(
    session: Session,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A demand curve: CSV, may be gzipped.")
    ],
    *,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Policy to run, repeatable; all runs every one. [default: default]"
        ),
    ] = None,
    time: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the time.")] = "time",
    total: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of all GPUs.")
    ] = "gpus_total",
    running: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of the GPUs that internal jobs hold.")
    ] = "gpus_running",
    train_until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What is fitted once, learns before. [default: --from]"),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Score from here. [default: the second week]"),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", metavar="TIME", help="Score up to here. [default: the end]"),
    ] = None,
    skip_day: Annotated[
        list[str] | None,
        typer.Option(metavar="DAY", help="Day that is neither known nor scored, repeatable."),
    ] = None,
    notice: Annotated[
        str, typer.Option(metavar="DURATION", help="How long a lease may take to leave.")
    ] = "10m",
    confidence: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of firm GPU-windows to be kept.")
    ] = 0.99,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="24H,4H,1H,REST", help="Prices per GPU-hour. [default: 1,0.85,0.7,0.5]"
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse a file with a line that cannot be used.")
    ] = False,
) -> None:
    """Replay decisions over a pool's history, as they would have been made, and score them.

    Every decision sees what was known one step before its window, and nothing later.
    """
    from sublet.planner.backtest import Setting, document  # noqa: PLC0415
    from sublet.planner.backtest import backtest as run  # noqa: PLC0415
    from sublet.planner.curve import Columns, read_curve  # noqa: PLC0415
    from sublet.planner.policies import POLICIES  # noqa: PLC0415

    columns = Columns(time=time, total=total, running=running)
    wait = _notice_seconds(notice)
    paid = _prices(prices)
    curve = read_curve(file, columns=columns, strict=strict)
    names = policy or ["default"]
    setting = Setting(
        policies=list(POLICIES) if "all" in names else names,
        train_until=None if train_until is None else curve.instant(train_until),
        start=None if start is None else curve.instant(start),
        end=None if end is None else curve.instant(end),
        skip_days=[curve.instant(day) for day in skip_day or []],
        notice_seconds=wait,
        confidence=confidence,
        prices=paid,
    )
    _warn(session, curve)
    report = run(curve, setting, told=lambda name: session.say(f"running {name} …"))
    if session.json:
        print_json(document(report))
    else:
        _print(report.scores)
        print(f"{report.seconds:.1f} s")


def _notice_seconds(text: str) -> int:
    return 0 if text.strip("0") in {"", "s", "m"} else seconds(text)


def _prices(text: str | None) -> "Prices":
    from sublet.planner.portfolio import DEFAULT_PRICES, Prices  # noqa: PLC0415

    if text is None:
        return DEFAULT_PRICES
    try:
        day, four, one, rest = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r} is not four prices such as 1,0.85,0.7,0.5", param_hint="--prices"
        ) from None
    if not all(0 <= price < 1e6 for price in (day, four, one, rest)) or not rest + one > 0:
        raise typer.BadParameter(
            "prices must not be negative, nor all nothing", param_hint="--prices"
        )
    return Prices(firm={1: one, 4: four, 24: day}, interruptible=rest)


def _warn(session: Session, curve: "Curve") -> None:
    for fault in curve.faults:
        session.say(f"skipped {fault}")
    if curve.skipped > len(curve.faults):
        session.say(f"skipped {curve.skipped - len(curve.faults)} more lines")
    if curve.above_capacity:
        session.say(
            f"demand exceeds capacity in {curve.above_capacity} of {len(curve)} samples: nothing is idle in them"
        )


def _print(scores: Sequence["Score"]) -> None:
    print_table(
        [_portfolio_row(one) for one in scores],
        [
            Column("portfolio", "name"),
            Column("revenue", "revenue", right=True),
            Column("95 %", "interval", right=True),
            Column("interruptible", "interruptible", right=True),
            Column("broken", "broken", right=True),
            Column("evictions/GPU-day", "evictions", right=True),
            Column("shortage", "shortage", right=True),
            Column("waited", "waited", right=True),
        ],
    )
    for hours in scores[0].firm if scores else ():
        print()
        print_table(
            [_firm_row(one, hours) for one in scores],
            [
                Column(f"firm {hours} h", "name"),
                Column("kept of possible", "kept", right=True),
                Column("95 %", "interval", right=True),
                Column("broken of sold", "broken", right=True),
                Column("95 %", "broken_interval", right=True),
                Column("oversold windows", "oversold", right=True),
                Column("sold of idle", "sold", right=True),
            ],
        )
    print()


def _portfolio_row(one: "Score") -> Document:
    return {
        "name": one.name if one.holds_the_gate else f"{one.name} (internal jobs wait)",
        "revenue": _percent(one.revenue.value),
        "interval": _interval(one.revenue),
        "interruptible": _percent(one.interruptible.value),
        "broken": _percent(one.broken.value, 2),
        "evictions": f"{one.evictions_per_gpu_day.value:.2f}",
        "shortage": _percent(one.shortage.value, 3),
        "waited": _percent(one.waited.value, 3),
    }


def _firm_row(one: "Score", hours: int) -> Document:
    firm = one.firm[hours]
    return {
        "name": one.name,
        "kept": _percent(firm.kept_of_clairvoyant.value),
        "interval": _interval(firm.kept_of_clairvoyant),
        "broken": _percent(firm.broken.value, 2),
        "broken_interval": _interval(firm.broken),
        "oversold": _percent(firm.oversold.value),
        "sold": _percent(firm.sold.value),
    }


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _interval(share: "Share") -> str:
    return f"{100 * share.low:.1f}-{100 * share.high:.1f}"
