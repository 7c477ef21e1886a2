"""Reading a stress scenario from TOML; `docs/operate/returns.md` lists every key."""

import tomllib
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Final

from sublet.core.errors import Invalid, NotFound
from sublet.core.money import NANOS, Money
from sublet.core.tables import Table
from sublet.finance.asset import Debt, Kind, Lot, Method, month_of
from sublet.finance.curves import PriceCurve, read_curve
from sublet.finance.register import read_lots, read_text
from sublet.finance.stress import Contract, Dice, Event, Scenario

_EVENTS: Final = ("non_renewal", "recall", "default", "new_generation", "utilisation")
_CURVES: Final = ("flat", "points", "file")


def shipped() -> list[str]:
    """Return the names of the scenarios that come with Sublet."""
    folder = files("sublet.finance") / "stress_scenarios"
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str, lots: Sequence[Lot] = ()) -> Scenario:
    """Read a scenario from a file, or one that comes with Sublet by its name.

    Args:
        name: of the file or the scenario.
        lots: the fleet, instead of the scenario's own.

    Raises:
        NotFound: there is no such file and no such scenario.
        Invalid: it cannot be used; the message says where and why.
    """
    path = Path(name)
    if name in shipped():
        text = (files("sublet.finance") / "stress_scenarios" / f"{name}.toml").read_text("utf-8")
        return parse(text, folder=Path(), lots=lots)
    if not path.exists():
        raise NotFound(
            f"there is no file {name!r}, and the scenarios that come with Sublet are"
            f" {', '.join(shipped())}"
        )
    return parse(read_text(path), folder=path.parent, lots=lots)


def parse(text: str, *, folder: Path, lots: Sequence[Lot] = ()) -> Scenario:
    """Raises Invalid: it is no TOML, or a key is missing, unknown or out of its bounds."""
    try:
        root = Table(tomllib.loads(text), "the scenario")
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"the scenario is no TOML: {error}") from None
    start = month_of(root.day("start", date(2026, 12, 1)))
    quarters = root.count("quarters", 20, least=1, most=200)
    own = _fleet(root.table("fleet"), start, folder, given=bool(lots))
    market = root.table("market")
    price = _price(market, start, folder)
    sold_share = market.number("sold_share", 0.8, most=1)
    market.end()
    dice = root.table("monte_carlo")
    scenario = Scenario(
        name=root.text("name"),
        about=root.text("about", ""),
        start=start,
        quarters=quarters,
        lots=list(lots) or own,
        price=price,
        internal_share=root.number("internal_share", 0.0, most=1),
        sold_share=sold_share,
        revenue_cost_share=root.number("revenue_cost_share", 0.0, most=1),
        covenant_dscr=root.number("covenant_dscr", 0.0, most=100),
        contracts=[_contract(one) for one in root.tables("contract")],
        events=[_event(one) for one in root.tables("event")],
        dice=Dice(
            price_volatility=dice.number("price_volatility", 0.3, most=5),
            sold_spread=dice.number("sold_spread", 0.05, most=1),
        ),
    )
    dice.end()
    root.end()
    return scenario


def _fleet(table: Table, start: date, folder: Path, *, given: bool) -> list[Lot]:
    """Read the fleet: a file of lots, or one lot in short."""
    if table.has("file"):
        path = folder / table.text("file")
        table.end()
        return [] if given else read_lots(read_text(path), path.name)
    gpus = table.count("gpus", 0 if given else None, most=10**8)
    cost = table.number("usd_per_gpu", 50_000, least=1)
    share = table.number("debt_share", 0.0, most=1)
    debt = (
        Debt(
            share=share,
            rate=table.number("debt_rate", 0.1, most=1),
            months=table.count("debt_months", 60, least=1, most=1200),
        )
        if share
        else None
    )
    bought_on = month_of(table.day("bought_on", start))
    watts = table.number("watts", 1400, most=1e6)
    fields = {
        "life_months": table.count("life_months", 60, least=1, most=1200),
        "salvage_share": table.number("salvage_share", 0.0, most=1),
        "idle_watts": table.number("idle_watts", watts, most=watts),
        "pue": table.number("pue", 1.3, least=1, most=10),
        "usd_per_kwh": table.number("usd_per_kwh", 0.08, most=1e3),
        "usd_per_gpu_year": table.number("usd_per_gpu_year", 0.0),
    }
    table.end()
    if not gpus:
        return []
    whole = round(cost * gpus * NANOS)
    return [
        Lot(
            name="fleet", kind=Kind.GPUS, site="site", pool="fleet", generation="fleet", gpus=gpus,
            bought_on=bought_on, in_service_on=bought_on, cost=Money(whole),
            life_months=int(fields["life_months"]),
            salvage=Money(round(whole * fields["salvage_share"])), method=Method.STRAIGHT,
            watts=watts, idle_watts=fields["idle_watts"], pue=fields["pue"],
            usd_per_kwh=fields["usd_per_kwh"],
            usd_per_month=fields["usd_per_gpu_year"] * gpus / 12, debt=debt,
        )
    ]  # fmt: skip


def _price(table: Table, start: date, folder: Path) -> PriceCurve:
    kind = table.text("curve", "flat", among=_CURVES)
    half_life = table.number("half_life_months", 0.0, most=1200)
    source = table.text("source", "the scenario")
    if kind == "flat":
        usd = table.number("usd_per_gpu_hour", least=1e-6, most=1e6)
        return PriceCurve(points=((start, usd),), source=source, half_life_months=half_life)
    if kind == "points":
        points = table.priced_days("points")
        curve = PriceCurve(points=points, source=source, half_life_months=half_life)
    else:
        path = folder / table.text("file")
        curve = read_curve(read_text(path), path.name)
    # A history is played again from the scenario's start on, and from today's price if it says so.
    if table.flag("from_start", default=False):
        curve = curve.moved_to(start)
    if table.has("usd_per_gpu_hour"):
        curve = curve.scaled_to(table.number("usd_per_gpu_hour", least=1e-6, most=1e6))
    return curve


def _contract(table: Table) -> Contract:
    contract = Contract(
        tenant=table.text("tenant"),
        gpus=table.count("gpus", least=1),
        usd_per_gpu_hour=table.number("usd_per_gpu_hour", most=1e6),
        first=table.count("from_month", 0, most=1200),
        months=table.count("months", least=1, most=1200),
        renews=table.flag("renews", default=False),
    )
    table.end()
    return contract


def _event(table: Table) -> Event:
    kind = table.text("kind", among=_EVENTS)
    needs_share = kind in {"recall", "new_generation", "utilisation"}
    event = Event(
        kind=kind,
        month=table.count("month", most=1200),
        share=table.number("share", None if needs_share else 0.0, most=1),
        months=table.count("months", 1, least=1, most=1200),
    )
    table.end()
    return event
