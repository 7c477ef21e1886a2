"""`sublet returns`, `sublet stress` and `sublet capital`: what the capital earned, and may earn."""

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublet.cli import plots
from sublet.cli.command import Session, command
from sublet.cli.files import whole
from sublet.cli.output import Column, Document, print_json, print_table, text

if TYPE_CHECKING:
    from sublet.finance.asset import Lot

Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page with charts as well.")
]
_WIDTH = 60


def add_to(root: typer.Typer) -> None:
    command(
        root, "returns",
        examples=(
            "sublet returns",
            "sublet returns --from 2026-10-01 --to 2026-11-01 --by pool",
            "sublet returns --by product --html returns.html",
        ),
    )(returns)  # fmt: skip
    command(
        root, "stress", shared=("json",),
        examples=(
            "sublet stress",
            "sublet stress price-halves",
            "sublet stress mine.toml --assets lots.csv --runs 1000 --html stress.html",
        ),
    )(stress)  # fmt: skip
    command(
        root, "capital", shared=("json",),
        examples=("sublet capital question.toml", "sublet capital question.toml --json"),
    )(capital)  # fmt: skip


def returns(
    session: Session,
    *,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="DAY", help="The first day. [default: 30 days before --to]"),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", metavar="DAY", help="The day after the last. [default: tomorrow]"),
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="WHAT", help="lot, pool, site, generation or product.")
    ] = "lot",
    discount: Annotated[
        float, typer.Option(metavar="RATE", help="A year, of present values.", min=-0.99, max=10)
    ] = 0.1,
    since_bought: Annotated[
        bool,
        typer.Option("--since-bought", help="Show also what each returned since it was bought."),
    ] = False,
    html: Html = None,
) -> None:
    """Show what the assets earned and cost, from the records: hours, margin, return, yield.

    What sat idle is in the cost of a GPU-hour. Needs a register: see `sublet asset import`.
    """
    query: dict[str, object] = {"from": start, "to": end, "by": by, "discount": discount}
    if since_bought:
        query["since_bought"] = "true"
    with session.operator() as api:
        document = api.get("/v1/returns", **{k: v for k, v in query.items() if v is not None})
    if html is not None:
        from sublet.console.sheet import returns_page  # noqa: PLC0415

        _write(session, html, returns_page(document))
    if session.json:
        print_json(document)
        return
    print(f"{text(document['from'])} to {text(document['to'])}")
    rows = [*document["lines"], document["total"]]
    print_table([row | row["gpu_hours"] for row in rows], _HOURS)
    print()
    print_table(rows, _MONEY)
    print()
    print_table(rows, (*_RETURN, *_SO_FAR) if since_bought else _RETURN)
    print()
    found = document["yield"]
    if found is not None:
        print(
            f"{_dollars(found['usd_per_megawatt_year'])} per MW and year"
            f" ({_dollars(found['usd_per_gigawatt_year'])} per GW)"
            f" = {found['usd_per_gpu_hour']:.2f} USD per GPU-hour sold"
            f" x {_percent(found['share_sold'])} sold"
            f" x {found['gpus_per_megawatt']:.0f} GPUs per MW x 8,760 h"
        )
    if document["usd_per_million_tokens"] is not None:
        print(f"{document['usd_per_million_tokens']:.4f} USD cost per million tokens")
    print(f"selling added {_dollars(document['total']['added_usd'])} against leaving it idle")


def stress(
    session: Session,
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENARIO", help="A TOML file, or the name of a scenario that is shipped."
        ),
    ] = None,
    *,
    assets: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The fleet: lots as CSV, instead of the scenario's."),
    ] = None,
    runs: Annotated[
        int, typer.Option(metavar="COUNT", help="Runs with dice; 0: none.", min=0, max=100_000)
    ] = 200,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all dice.", min=0)] = 1,
    html: Html = None,
) -> None:
    """Follow a fleet's cash by quarter through a scenario: prices, contracts, what goes wrong.

    Says when it turns negative, when a covenant breaks, and at which price it breaks even.
    Without a scenario, list those that come with Sublet.
    """
    from sublet.finance.report import stress_document  # noqa: PLC0415 -- slow to load
    from sublet.finance.scenarios import load, shipped  # noqa: PLC0415
    from sublet.finance.stress import monte_carlo, outlook  # noqa: PLC0415

    if scenario is None:
        items = [{"name": name, "about": load(name).about} for name in shipped()]
        session.show_items({"items": items}, _SCENARIOS)
        return
    told = load(scenario, _lots(assets))
    found = outlook(told)
    spread = monte_carlo(told, runs=runs, seed=seed) if runs else None
    document = stress_document(told, found, spread)
    if html is not None:
        from sublet.console.sheet import stress_page  # noqa: PLC0415

        _write(session, html, stress_page(document))
    if session.json:
        print_json(document)
        return
    print(f"{told.name}: {told.about}")
    print_table(document["quarters"], _QUARTERS)
    print()
    cumulative = [quarter["cumulative_usd"] for quarter in document["quarters"]]
    least, most = min(0.0, *cumulative), max(0.0, *cumulative)
    heights = [(value - least) / ((most - least) or 1.0) for value in cumulative]
    for row in plots.area(_spread(heights), [1.0] * _WIDTH, height=8):
        print(row)
    starts = [quarter["start"][:7] for quarter in document["quarters"]]
    print(plots.axis([starts[0], starts[len(starts) // 2], starts[-1]], width=_WIDTH))
    print(f"cumulative cash, from {_dollars(least)} to {_dollars(most)}")
    for line in _verdicts(document):
        print(line)


def capital(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is asked: TOML.")],
) -> None:
    """Find the least-cost mix of buying, leasing in, selling and parting with GPUs.

    Says whether a surplus is a timing mismatch or an overbuild. The keys of the file are in
    docs/operate/returns.md.
    """
    from sublet.finance.capital import best_mix  # noqa: PLC0415 -- slow to load
    from sublet.finance.question import read_question  # noqa: PLC0415
    from sublet.finance.report import mix_document  # noqa: PLC0415

    question, start = read_question(file)
    document = {"from": start.isoformat()} | mix_document(best_mix(question))
    if session.json:
        print_json(document)
        return
    months = document["months"]
    rows = [
        {"month": name, "demand": demand, "owned": owned}
        | {key: values[place] for key, values in months.items()}
        for place, (name, demand, owned) in enumerate(
            zip(_month_names(start, len(question.demand)), question.demand, question.owned,
                strict=True)
        )
    ]  # fmt: skip
    print_table(rows, _MIX)
    print()
    print(f"{document['verdict']}: {document['because']}")
    print(
        f"{_dollars(document['saved_usd'])} less than leasing in what is short and selling the rest"
    )


def _lots(path: Path | None) -> "list[Lot]":
    from sublet.finance.register import read_lots, read_text  # noqa: PLC0415

    return [] if path is None else read_lots(read_text(path), path.name)


def _write(session: Session, path: Path, page: str) -> None:
    with whole(path) as file:
        file.write(page.encode())
    session.say(f"the page is in {path}")


def _verdicts(document: Document) -> list[str]:
    said = []
    if document["negative_from"] is not None:
        said.append(f"the quarter from {document['negative_from']} on is the first that loses cash")
    else:
        said.append("no quarter loses cash")
    if document["covenant_dscr"]:
        broken = document["covenant_broken_from"]
        covenant = f"a DSCR of {document['covenant_dscr']:g} is"
        said.append(
            f"{covenant} kept throughout"
            if broken is None
            else f"{covenant} broken from the quarter of {broken} on"
        )
    price = document["break_even_usd_per_gpu_hour"]
    said.append(
        "no market price breaks even"
        if price is None
        else f"a flat market price of {price:.2f} USD per GPU-hour breaks even"
    )
    if (dice := document.get("monte_carlo")) is not None:
        last = {name: values[-1] for name, values in dice["cumulative_usd"].items()}
        said.append(
            f"with dice, {dice['runs']} runs: {_dollars(last['p5'])} to {_dollars(last['p95'])}"
            f" in the end (5 to 95 of 100), {_percent(dice['negative_share'])} of them below nothing,"
            f" {_percent(dice['covenant_broken_share'])} break the covenant"
        )
    return said


def _spread(values: list[float]) -> list[float]:
    """Return the values over the columns of a plot."""
    return [values[column * len(values) // _WIDTH] for column in range(_WIDTH)]


def _month_names(start: date, count: int) -> list[str]:
    from sublet.finance.asset import add_months  # noqa: PLC0415

    return [f"{add_months(start, month):%Y-%m}" for month in range(count)]


def _dollars(value: object) -> str:
    """Write USD in as many digits as anybody reads."""
    if not isinstance(value, int | float):
        return ""
    sign = "-" if value < 0 else ""
    for unit, size in (("bn", 1e9), ("m", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{sign}${abs(value) / size:,.2f}{unit}"
    return f"{sign}${abs(value):,.2f}"


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else ""


def _hours(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else ""


def _number(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, int | float) else ""


def _kept(value: object) -> str:
    return "" if value is None else "kept" if value else "broken"


_HOURS = (
    Column("", "name"),
    Column("GPUs", "gpus", _hours, right=True),
    *(
        Column(title, key, _hours, right=True)
        for title, key in (
            ("internal h", "internal"), ("contract", "contract"), ("reserved", "reserved"),
            ("on demand", "on_demand"), ("interruptible", "interruptible"), ("model", "model"),
            ("idle", "idle"), ("down", "down"),
        )
    ),
)  # fmt: skip
_MONEY = (
    Column("", "name"),
    Column("revenue", "revenue_usd", _dollars, right=True),
    Column("cash cost", "cash_cost_usd", _dollars, right=True),
    Column("depreciation", "depreciation_usd", _dollars, right=True),
    Column("book value", "book_value_usd", _dollars, right=True),
    Column("cost/GPU-hour", "usd_per_gpu_hour", _number, right=True),
    Column("margin", "gross_margin", _percent, right=True),
    Column("ROIC", "roic", _percent, right=True),
    Column("payback, years", "payback_years", _number, right=True),
    Column("added", "added_usd", _dollars, right=True),
)
_RETURN = (
    Column("", "name"),
    Column("IRR at this pace", "irr", _percent, right=True),
    Column("NPV at this pace", "npv_usd", _dollars, right=True),
)
_SO_FAR = (
    Column("XIRR so far", "xirr_so_far", _percent, right=True),
    Column("NPV so far", "npv_so_far_usd", _dollars, right=True),
)
_SCENARIOS = (Column("scenario", "name"), Column("about", "about"))
_QUARTERS = (
    Column("quarter", "start"),
    Column("price", "usd_per_gpu_hour", _number, right=True),
    Column("GPUs", "gpus", _hours, right=True),
    Column("sold", "sold_gpus", _hours, right=True),
    Column("revenue", "revenue_usd", _dollars, right=True),
    Column("power", "power_usd", _dollars, right=True),
    Column("other", "other_cost_usd", _dollars, right=True),
    Column("interest", "interest_usd", _dollars, right=True),
    Column("principal", "principal_usd", _dollars, right=True),
    Column("free cash", "free_cash_usd", _dollars, right=True),
    Column("cumulative", "cumulative_usd", _dollars, right=True),
    Column("DSCR", "dscr", _number, right=True),
    Column("covenant", "covenant_kept", _kept),
)
_MIX = (
    Column("month", "month"),
    Column("demand", "demand", _hours, right=True),
    Column("owned", "owned", _hours, right=True),
    Column("buy", "bought", _hours, right=True),
    Column("lease in", "leased_in", _hours, right=True),
    Column("sell", "sold", _hours, right=True),
    Column("part with", "parted_with", _hours, right=True),
    Column("idle", "idle", _hours, right=True),
)
