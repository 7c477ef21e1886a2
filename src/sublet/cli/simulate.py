"""`sublet simulate`: months of a fleet in minutes, by our rules or by those of others.

It reads a scenario and talks to no instance. Arrays and solvers are imported when it runs.
"""

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sublet.cli.command import Session, command
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.output import Column, print_json, print_table
from sublet.cli.progress import bar

if TYPE_CHECKING:
    from sublet.simulation.play import Played, Variant


def add_to(root: typer.Typer) -> None:
    command(
        root, "simulate",
        examples=(
            "sublet simulate",
            "sublet simulate spot-on-old-cards",
            "sublet simulate fleet.toml --seed 7 --json",
            "sublet simulate fleet.toml --rules sublet --rules slurm --rules kueue --seeds 5",
            "sublet simulate fleet.toml --pricing bid --pricing fixed --pricing greedy --seeds 5",
        ),
    )(simulate)  # fmt: skip


def simulate(
    session: Session,
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENARIO", help="A TOML file, or the name of a scenario that is shipped."
        ),
    ] = None,
    *,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all dice.", min=0)] = 1,
    seeds: Annotated[
        int, typer.Option(metavar="COUNT", help="How many seeds to run, from --seed on.", min=1)
    ] = 1,
    rules: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose rules, repeatable; all runs every one."),
    ] = None,
    pricing: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="bid, fixed, cost_plus or greedy, repeatable; or all."),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write every lease that ended, as CSV."),
    ] = None,
) -> None:
    """Play a scenario with the real rules on a clock of its own, and check the laws at each step.

    Without a scenario, list those that come with Sublet.
    """
    from sublet.simulation.play import play, set_stage  # noqa: PLC0415
    from sublet.simulation.rules import RULES  # noqa: PLC0415
    from sublet.simulation.scenario import load_scenario  # noqa: PLC0415

    if scenario is None:
        _list(session)
        return
    told = load_scenario(scenario)
    variants = _variants(rules, pricing, told.conduct.rules, told.conduct.pricing)
    many = seeds > 1 or len(variants) > 1
    if many and history is not None:
        raise Failure("--history is of one run: one seed, one set of rules", ExitCode.USAGE)
    began = time.monotonic()
    played: list[Played] = []
    with bar(wanted=not session.json) as tell:
        for number in range(seed, seed + seeds):
            needed = any(RULES[one.rules].plans for one in variants)
            stage = set_stage(told, number, plans=needed, told=tell)
            played += play(stage, variants, tell, keep=history is not None)
    seconds = round(time.monotonic() - began, 1)
    if history is not None:
        _write(history, played[0])
    _show(session, played, told.name, {"seconds": seconds, "rss_mb": _rss_mb()}, many=many)
    broken = sum(one.outcome.violations for one in played)
    if broken:
        raise Failure(f"{broken} times a law was broken; see broken_laws and messages")


def _list(session: Session) -> None:
    from sublet.simulation.scenario import load_scenario, shipped  # noqa: PLC0415

    items = [{"name": name, "about": load_scenario(name).about} for name in shipped()]
    if session.json:
        print_json({"items": items})
    else:
        print_table(items, [Column("scenario", "name"), Column("about", "about")])


def _variants(
    rules: list[str] | None, pricing: list[str] | None, own_rules: str, own_pricing: str
) -> "list[Variant]":
    from sublet.simulation.play import Variant  # noqa: PLC0415
    from sublet.simulation.rules import PRICING, RULES  # noqa: PLC0415

    whose = list(RULES) if rules and "all" in rules else rules or [own_rules]
    how = list(PRICING) if pricing and "all" in pricing else pricing or [own_pricing]
    for name, known, option in [(one, tuple(RULES), "--rules") for one in whose] + [
        (one, PRICING, "--pricing") for one in how
    ]:
        if name not in known:
            raise typer.BadParameter(
                f"{name[:40]!r} is none of {', '.join(known)}", param_hint=option
            )
    out = []
    for name in dict.fromkeys(whose):
        if RULES[name].pricing:
            out.append(Variant(rules=name, pricing=how[0]))
        else:
            out += [Variant(rules=name, pricing=one) for one in dict.fromkeys(how)]
    return out


def _show(
    session: Session, played: "list[Played]", name: str, cost: dict[str, Any], *, many: bool
) -> None:
    from sublet.cli.simulate_text import page  # noqa: PLC0415
    from sublet.simulation.outcome import document  # noqa: PLC0415
    from sublet.simulation.report import comparison  # noqa: PLC0415

    documents = [
        {"seed": one.seed} | document(one.outcome, clairvoyant_nanos=one.clairvoyant_nanos)
        for one in played
    ]
    if many:
        rows = comparison(played)
        if session.json:
            print_json({"runs": documents, "comparison": rows} | cost)
            return
        print_table(rows, _COLUMNS)
        print(f"{len(played)} runs in {cost['seconds']} s")
    elif session.json:
        print_json({"scenario": name} | documents[0] | cost)
    else:
        for line in page(name, played[0]):
            print(line)
        print(f"{cost['seconds']} s, {cost['rss_mb']} MB")


_COLUMNS = (
    Column("rules", "name"),
    Column("of clairvoyant", "revenue", right=True),
    Column("95 %", "interval", right=True),
    Column("net USD", "net", right=True),
    Column("idle sold", "sold", right=True),
    Column("shortage", "shortage", right=True),
    Column("evictions", "evictions", right=True),
    Column("most of one", "worst", right=True),
    Column("wait p99", "wait", right=True),
    Column("laws broken", "violations", right=True),
)


def _write(path: Path, played: "Played") -> None:
    from sublet.cli.files import whole  # noqa: PLC0415

    with whole(path) as file:
        file.writelines(played.outcome.csv())


def _rss_mb() -> int:
    """Return the most memory that this process held, and the planning ones beside it."""
    from sublet.simulation.planning import WORKERS  # noqa: PLC0415

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = WORKERS * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round((own + children) * unit / 1e6)
