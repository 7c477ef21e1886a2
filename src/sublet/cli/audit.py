"""`sublet audit`: what sat idle, from files that the cluster has already."""

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sublet.cli.command import Session, command
from sublet.cli.engine import Config as SlurmFile
from sublet.cli.engine import slurm_settings
from sublet.cli.files import whole
from sublet.cli.output import print_json
from sublet.cli.waiting import Waiting
from sublet.core.money import NANOS, Rate

if TYPE_CHECKING:
    from sublet.planner.idle.audit import Scope
    from sublet.planner.idle.hindsight import Prices
    from sublet.planner.idle.inputs import File

_HOUR_S: Final = 3_600
Column = Annotated[str | None, typer.Option(metavar="COLUMN")]


def add_to(root: typer.Typer) -> None:
    command(
        root, "audit", shared=("json",),
        examples=(
            "sublet audit sacct.txt",
            "sublet audit sacct.txt --capacity a100=512 --capacity h100=256 --html idle.html",
            "sublet audit a100=demand.csv --prices 24h=2.1,4h=1.9,1h=1.7,interruptible=1.1",
            "sublet audit jobs.csv --submit submitted --duration seconds --quota team",
            "sublet audit sacct-*.txt.gz --from 2026-01-01 --to 2026-07-01 --strict --json",
            "sublet audit --from-slurm --from 2026-01-01 --html idle.html",
        ),
    )(audit)  # fmt: skip


def audit(
    session: Session,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE…", help="FILE, or POOL=FILE where it does not name its pool."),
    ] = None,
    *,
    from_slurm: Annotated[
        bool,
        typer.Option(
            "--from-slurm", help="Ask the Slurm cluster here instead; leases are left out."
        ),
    ] = False,
    slurm: SlurmFile = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with charts as well.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail at the first line that cannot be used.")
    ] = False,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="From when on, in UTC.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Until when.")] = None,
    capacity: Annotated[
        list[str] | None,
        typer.Option(metavar="POOL=N", help="GPUs of a pool, which jobs do not tell. Repeatable."),
    ] = None,
    quota_gpus: Annotated[
        list[str] | None,
        typer.Option(metavar="QUOTA=N", help="Nominal GPUs of a quota. Repeatable."),
    ] = None,
    prices: Annotated[
        str,
        typer.Option(
            metavar="NAME=USD,…",
            help="USD per GPU-hour, of firm windows and of what may be taken back.",
        ),
    ] = "24h=1.00,4h=0.85,1h=0.70,interruptible=0.50",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Replay what a policy of `sublet backtest` would have sold; `default` is ours.",
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Which pool a job is of. [sacct: the GPU's model; lists: pool]"
        ),
    ] = None,
    quota: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Whose quota it counts on. [sacct: Account; lists: account]"
        ),
    ] = None,
    time: Annotated[str, typer.Option(metavar="COLUMN", help="Of a demand curve: when.")] = "time",
    total: Annotated[
        str, typer.Option(metavar="COLUMN", help="… how many GPUs there were.")
    ] = "gpus_total",
    running: Annotated[
        str, typer.Option(metavar="COLUMN", help="… how many jobs held.")
    ] = "gpus_running",
    pending: Annotated[
        str, typer.Option(metavar="COLUMN", help="… how many they waited for, if it says so.")
    ] = "gpus_pending",
    submit: Annotated[
        str, typer.Option(metavar="COLUMN", help="Of a job list: when it was submitted.")
    ] = "submit_time",
    start: Annotated[
        str, typer.Option(metavar="COLUMN", help="… when it started, if it says so.")
    ] = "start_time",
    duration: Annotated[
        str, typer.Option(metavar="COLUMN", help="… for how many seconds it ran.")
    ] = "duration_s",
    gpus: Annotated[str, typer.Option(metavar="COLUMN", help="… on how many GPUs.")] = "gpus",
) -> None:
    """Show what sat idle, where, for how long, and what it was worth.

    Reads files that the cluster has already, each also gzipped: what `sacct -P --allocations`
    prints, demand curves (time,gpus_total,gpus_running[,gpus_pending]) and job lists
    (submit_time,duration_s,gpus) as CSV. Needs no running Sublet and changes nothing.
    """
    from sublet.planner.curve import Columns as CurveColumns  # noqa: PLC0415 -- slow to load
    from sublet.planner.idle.audit import Scope  # noqa: PLC0415
    from sublet.planner.idle.audit import audit as work_out  # noqa: PLC0415
    from sublet.planner.idle.inputs import Names, read_all  # noqa: PLC0415
    from sublet.planner.idle.joblist import Columns as ListColumns  # noqa: PLC0415
    from sublet.planner.idle.report import document  # noqa: PLC0415

    lists = ListColumns(submit=submit, start=start, duration=duration, gpus=gpus)
    lists = replace(lists, pool=pool or lists.pool, quota=quota or lists.quota)
    names = Names(
        curve=CurveColumns(time=time, total=total, running=running, pending=pending),
        jobs=lists,
        sacct_pool=pool,
        sacct_quota=quota or "Account",
    )
    scope = Scope(
        prices=_prices(prices),
        start=_instant(from_, "--from"),
        end=_instant(to, "--to"),
        capacity=_counts(capacity or [], "--capacity"),
        quotas=_counts(quota_gpus or [], "--quota-gpus"),
        policy=policy,
    )
    if from_slurm == bool(files):
        raise typer.BadParameter("name files, or say --from-slurm", param_hint="FILE…")
    with Waiting() as waiting, TemporaryDirectory(prefix="sublet-audit-") as folder:
        there: dict[str, int] = {}
        if from_slurm:
            waiting.told("asking Slurm's accounting", 0, 0)
            path, there = _ask_slurm(slurm, Path(folder), scope)
            files = [str(path)]
        record = read_all(
            _files(files or []),
            names=names,
            strict=strict,
            progress=lambda name, done, of: waiting.told(f"reading {name}", done, of),
        )
        pools = {name for _, jobs in record.jobs for name in jobs.frame["pool"].unique()}
        if len(there) == len(pools) == 1:  # whatever its partition calls it
            there = dict(zip(pools, there.values(), strict=True))
        if not scope.capacity:
            known = {name: count for name, count in there.items() if name in pools}
            scope = replace(scope, capacity=known)
        found = work_out(record, scope, progress=waiting.told)
    shown = document(found)
    if html is not None:
        from sublet.console.audit_page import render  # noqa: PLC0415

        with whole(html) as file:
            file.write(render(found).encode())
        session.say(f"the page is in {html}")
    if session.json:
        print_json(shown)
    else:
        from sublet.cli.audit_text import print_report  # noqa: PLC0415

        print_report(found, shown)


def _ask_slurm(slurm: Path | None, folder: Path, scope: "Scope") -> tuple[Path, dict[str, int]]:
    """Write the cluster's accounting to a file; return it, and its GPUs by model."""
    from sublet.engine.slurm import history  # noqa: PLC0415 -- slow to load
    from sublet.engine.slurm.commands import Slurm  # noqa: PLC0415
    from sublet.planner.idle import sacct  # noqa: PLC0415

    cluster = Slurm(settings=slurm_settings(slurm))
    history.check_accounting(cluster)
    path = folder / "sacct.txt"
    history.write_record(
        cluster,
        path,
        fields=sacct.FIELDS,
        since="now-30days" if scope.start is None else _as_sacct(scope.start),
        until=None if scope.end is None else _as_sacct(scope.end),
    )
    return path, history.gpus_by_model(cluster)


def _as_sacct(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _files(given: list[str]) -> "list[File]":
    """Read FILE and POOL=FILE; the same file twice is a mistake."""
    from sublet.planner.idle.inputs import File  # noqa: PLC0415

    files = []
    for text in given:
        pool, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            files.append(File(path=Path(text)))
        elif pool and path:
            files.append(File(path=Path(path), pool=pool))
        else:
            raise typer.BadParameter(f"{text[:80]!r} is neither FILE nor POOL=FILE")
    paths = [file.path for file in files]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise typer.BadParameter(f"{twice} is given twice")
    return files


def _counts(given: list[str], option: str) -> dict[str, int]:
    """Read NAME=N pairs; a bare N is of the only one there is, named ""."""
    counts: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise typer.BadParameter(f"{text[:80]!r} is not NAME=N", param_hint=option)
        if name in counts:
            raise typer.BadParameter(f"{name or number!r} is given twice", param_hint=option)
        counts[name] = int(number)
    return counts


def _prices(text: str) -> "Prices":
    from sublet.planner.idle.hindsight import DEFAULT_PRICES, Prices  # noqa: PLC0415

    firm, interruptible = dict(DEFAULT_PRICES.firm), DEFAULT_PRICES.interruptible
    named = {f"{hours}h": hours for hours in firm}
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        if name not in named and name != "interruptible":
            known = ", ".join([*named, "interruptible"])
            raise typer.BadParameter(
                f"{part[:40]!r} is not NAME=USD with NAME one of {known}", param_hint="--prices"
            )
        try:
            nanos = Fraction(amount) * NANOS
        except (ValueError, ZeroDivisionError):
            nanos = Fraction(-1)
        if not 0 <= nanos <= 10**6 * NANOS or nanos.denominator != 1:
            raise typer.BadParameter(
                f"{amount[:40]!r} is not a price such as 0.85", param_hint="--prices"
            )
        rate = Rate(nanos=int(nanos), per=_HOUR_S)
        if name == "interruptible":
            interruptible = rate
        else:
            firm[named[name]] = rate
    return Prices(firm=firm, interruptible=interruptible)


def _instant(text: str | None, option: str) -> int | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text[:40]!r} is not a time such as 2026-07-01 or 2026-07-01T12:00", param_hint=option
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
