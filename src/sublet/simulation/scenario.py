"""A scenario: the fleet, its internal demand, who asks for leases, what happens, and the rules.

Read from TOML by `read_scenario`; `docs/operate/simulate.md` lists every key.
"""

import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid, NotFound
from sublet.core.money import NANOS, Money, Rate
from sublet.core.tables import Table
from sublet.fleet.coming import Capacity
from sublet.leases import contract as contracts
from sublet.market.floor import Cost
from sublet.simulation.rules import PRICING, RULES

TIERS: Final = ("interruptible", "on_demand", "reserved", "contract")  # in the order they give way
INTERRUPTIBLE, ON_DEMAND, RESERVED, CONTRACT = range(4)
STEP: Final = 300  # seconds between two looks of planner and reclaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Internal demand of a pool, as shares of its GPUs: a file's, or made up; see `demand`."""

    file: Path | None = None  # a demand curve; scaled to the pool, repeated when too short
    mean: float = 0.74
    jobs: float = 0.5  # share of the mean that comes as separate jobs
    largest: float = 0.12  # job, as a share of the pool
    hours: float = 5.0  # a job's median
    drift: float = 0.04  # how far the level wanders
    day: float = 0.02  # height of the daily cycle


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    name: str
    model: str
    site: int
    gpus: int
    notice: int  # seconds
    lendable: bool
    lending_limit: int | None
    cost: Cost
    full_cost: float  # share of the capital's cost that the floor includes
    list_nanos: tuple[int, ...]  # price book: per GPU-hour, by tier
    demand: Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests of one kind, declared synthetic."""

    tier: int
    pools: tuple[int, ...]
    per_day: float  # over all of its pools
    gpus: tuple[int, ...]
    hours: float  # median
    hours_spread: float  # of its logarithm
    offer_nanos: int  # per GPU-hour, median at a price level of 1
    offer_spread: float
    ahead_hours: float  # of reserved windows, at most
    resumable: float  # share
    checkpoint_hours: float  # between two times that a lease saves its work; 0: it never does


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens: `site_down`, `launch` or `release`."""

    kind: str
    pools: tuple[int, ...]
    day: float
    hours: float  # it lasts, or takes to be whole
    share: float  # of the pool that internal jobs want on top


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A bulk deal: GPUs by ramp step at one price, taken or paid for, and recalled with notice."""

    pools: tuple[int, ...]
    share: float  # of each pool
    day: float
    days: float
    ramp: tuple[tuple[float, float], ...]  # day after its start, share of the deal
    nanos: int  # per GPU-hour
    recall_day: float | None
    recall_notice_days: int
    shortfall_percent: int = 100  # of the price of what is taken back, given back
    late_percent: int = 100  # of the price of what is late, not paid

    def as_signed(self, first: datetime, pool: Pool) -> contracts.Contract | None:
        """Return it as the product signs it for one of its pools; None where that is less than a GPU.

        Args:
            first: when the scenario begins.
            pool: one of its.
        """
        at = first + _days(self.day)
        steps = tuple(
            contracts.Step(
                starts_at=at + _days(after), gpus=gpus, rate=Rate(nanos=self.nanos, per=3_600)
            )
            for after, share in self.ramp
            if (gpus := int(self.share * share * pool.gpus))
        )
        if not steps:
            return None
        return contracts.Contract(
            id=UUID(int=1), tenant_id=UUID(int=2),
            pool=pool.name, name="bulk", steps=steps, ends_at=at + _days(self.days),
            signed_at=first, notice=timedelta(0), minimum=Money(0),
            shortfall_percent=self.shortfall_percent, late_percent=self.late_percent,
            notice_days=self.recall_notice_days,
            recall_days=None if self.recall_day is None else self.recall_notice_days,
            renewal_days=0,
        )  # fmt: skip

    def recalled_at(self, first: datetime) -> datetime | None:
        """Return when the operator recalls it, if it does."""
        return None if self.recall_day is None else first + _days(self.recall_day)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    node_gpus: int
    node_days: float  # mean time between failures of one node; 0: none
    repair_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenants:
    count: int
    wallet_nanos: int
    refilled: float  # share of the tenants that pay in again when a day begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How the operator runs it."""

    rules: str
    pricing: str
    confidence: float
    learn_days: float
    bid_hours: float
    min_run_hours: float  # for which on-demand is firm
    credit_share: float
    credit_cap_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    about: str
    start: date
    days: int
    warmup_days: int
    sites: tuple[str, ...]
    pools: tuple[Pool, ...]
    arrivals: tuple[Arrivals, ...]
    prices: tuple[tuple[float, float], ...]  # day, level of what tenants offer
    events: tuple[Event, ...]
    contracts: tuple[Contract, ...]
    failures: Failures
    tenants: Tenants
    conduct: Conduct


def shipped() -> list[str]:
    """Return the names of the scenarios that come with Sublet."""
    folder = files("sublet.simulation") / "scenarios"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir())


def load_scenario(name: str) -> Scenario:
    """Read a scenario from a file, or one that comes with Sublet by its name.

    Raises:
        NotFound: there is no such file and no such scenario.
        Invalid: it cannot be used; the message says where and why.
    """
    path = Path(name)
    if name in shipped():
        text = (files("sublet.simulation") / "scenarios" / f"{name}.toml").read_text("utf-8")
        return parse_scenario(text, folder=Path())
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(
            f"there is no file {name!r}, and the scenarios that come with Sublet are"
            f" {', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"cannot read {name}: {error}") from None
    return parse_scenario(text, folder=path.parent)


def parse_scenario(text: str, *, folder: Path) -> Scenario:
    """Read a scenario from TOML; files that it names lie beside `folder`.

    Raises:
        Invalid: as `load_scenario`.
    """
    try:
        top = Table(tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"the scenario is not TOML: {error}") from None
    sites = [(one.text("name"), one) for one in top.tables("site")]
    if not sites:
        raise Invalid("a scenario has at least one [[site]]")
    names = [name for name, _ in sites]
    if len(set(names)) < len(names):
        raise Invalid("two sites have one name")
    powers = []
    for _, table in sites:
        powers.append(
            (table.number("pue", 1.3, least=1, most=3), table.number("usd_per_kwh", 0.07))
        )
        table.end()
    pools = [pool for table in top.tables("pool") for pool in _pools(table, names, powers, folder)]
    if not pools:
        raise Invalid("a scenario has at least one [[pool]]")
    if len({pool.name for pool in pools}) < len(pools):
        raise Invalid("two [[pool]] tables have one model at one site: give them other names")
    models = sorted({pool.model for pool in pools})
    scenario = Scenario(
        name=top.text("name"),
        about=top.text("about", ""),
        start=top.day("start", date(2026, 3, 2)),
        days=top.count("days", least=1, most=3_660),
        warmup_days=top.count("warmup_days", 28, least=2, most=366),
        sites=tuple(names),
        pools=tuple(pools),
        arrivals=tuple(_arrivals(one, models, pools) for one in top.tables("arrivals")),
        prices=top.pairs("prices"),
        events=tuple(_event(one, models, names, pools) for one in top.tables("event")),
        contracts=tuple(_contract(one, models, pools) for one in top.tables("contract")),
        failures=_failures(top.table("failures")),
        tenants=_tenants(top.table("tenants")),
        conduct=_conduct(top.table("conduct")),
    )
    top.end()
    return scenario


def _pools(
    table: Table, sites: list[str], powers: list[tuple[float, float]], folder: Path
) -> list[Pool]:
    model = table.text("model")
    at = table.texts("sites", among=sites)
    count = table.count("per_site", 1, least=1, most=10_000)
    gpus = table.count("gpus", least=1, most=2_000_000)
    notice = table.count("notice_seconds", 120, least=10, most=86_400)
    lendable = table.flag("lendable", default=True)
    limit = table.number("lending_limit", 1.0, most=1)
    watts, wear = table.number("watts", 700), table.number("wear_usd_hour", 0.05)
    support, capital = table.number("support_usd_hour", 0.05), table.number("capital_usd_hour", 1.0)
    full = table.number("full_cost", 0.0, most=1)
    listed = table.table("list_usd_hour")
    prices = tuple(_nanos(listed.number(tier, _LIST[tier], least=1e-6)) for tier in TIERS)
    listed.end()
    demand = _demand(table.table("demand"), folder)
    table.end()
    out = []
    for site in at:
        place = sites.index(site)
        pue, kwh = powers[place]
        cost = Cost.of_usd(
            watts=watts, pue=pue, usd_per_kwh=kwh, wear=wear, support=support, capital=capital
        )
        for number in range(count):
            name = f"{model}@{site}" + (f"-{number + 1}" if count > 1 else "")
            out.append(
                Pool(
                    name=name,
                    model=model,
                    site=place,
                    gpus=gpus,
                    notice=notice,
                    lendable=lendable,
                    lending_limit=None if limit >= 1 else int(limit * gpus),
                    cost=cost,
                    full_cost=full,
                    list_nanos=prices,
                    demand=demand,
                )
            )
    return out


_LIST: Final = {"interruptible": 1.0, "on_demand": 2.0, "reserved": 1.8, "contract": 1.6}


def _demand(table: Table, folder: Path) -> Demand:
    file = table.text("file", "")
    path = folder / file
    if file and not path.is_file():
        raise table.wrong(f"there is no file {path}")
    demand = Demand(
        file=path if file else None,
        mean=table.number("mean", 0.74, most=1),
        jobs=table.number("jobs", 0.5, most=1),
        largest=table.number("largest", 0.12, least=1e-6, most=1),
        hours=table.number("hours", 5.0, least=0.05, most=500),
        drift=table.number("drift", 0.04, most=1),
        day=table.number("day", 0.02, most=1),
    )
    table.end()
    return demand


def _at(table: Table, models: list[str], pools: list[Pool]) -> tuple[int, ...]:
    wanted = table.texts("models", among=models)
    return tuple(place for place, pool in enumerate(pools) if pool.model in wanted)


def _arrivals(table: Table, models: list[str], pools: list[Pool]) -> Arrivals:
    tier = TIERS.index(table.text("tier", among=TIERS[:CONTRACT]))
    arrivals = Arrivals(
        tier=tier,
        pools=_at(table, models, pools),
        per_day=table.number("per_day", most=10_000_000),
        gpus=table.counts("gpus", [1, 2, 4, 8]),
        hours=table.number("hours", least=0.1, most=2_000),
        hours_spread=table.number("hours_spread", 0.8, most=4),
        offer_nanos=_nanos(table.number("offer_usd_hour", least=1e-6, most=1e4)),
        offer_spread=table.number("offer_spread", 0.25, most=3),
        ahead_hours=table.number("ahead_hours", 48.0, most=24 * 60),
        resumable=table.number("resumable", 0.5, most=1),
        checkpoint_hours=table.number("checkpoint_hours", 0.0, most=1_000),
    )
    table.end()
    return arrivals


def _event(table: Table, models: list[str], sites: list[str], pools: list[Pool]) -> Event:
    kind = table.text("kind", among=("site_down", "launch", "release"))
    if kind == "site_down":
        places = {sites.index(site) for site in table.texts("sites", among=sites)}
        at = tuple(place for place, pool in enumerate(pools) if pool.site in places)
    else:
        at = _at(table, models, pools)
    event = Event(
        kind=kind,
        pools=at,
        day=table.number("day", most=4_000),
        hours=table.number("hours", 1.0, least=0.1, most=24 * 4_000),
        share=table.number("share", 1.0, most=1),
    )
    table.end()
    return event


def _contract(table: Table, models: list[str], pools: list[Pool]) -> Contract:
    recalled = table.has("recall_day")
    contract = Contract(
        pools=_at(table, models, pools),
        share=table.number("share", least=1e-6, most=1),
        day=table.number("day", 0.0, most=4_000),
        days=table.number("days", least=0.05, most=4_000),
        ramp=table.pairs("ramp") or ((0.0, 1.0),),
        nanos=_nanos(table.number("usd_hour", least=1e-6, most=1e4)),
        recall_day=table.number("recall_day", most=4_000) if recalled else None,
        recall_notice_days=table.count("recall_notice_days", 90, least=0, most=3_660),
        shortfall_percent=table.count("shortfall_percent", 100, least=0, most=100),
        late_percent=table.count("late_percent", 100, least=0, most=100),
    )
    table.end()
    if any(later[1] < earlier[1] for earlier, later in pairwise(contract.ramp)):
        raise table.wrong("a ramp does not fall")
    if contract.ramp[-1][1] > 1:
        raise table.wrong("a ramp ends at 1 at most: the whole deal")
    first = datetime.combine(date(2000, 1, 1), time(), UTC)
    for place in contract.pools:
        if (signed := contract.as_signed(first, pools[place])) is not None:
            try:
                signed.check(capacity=Capacity(gpus=pools[place].gpus), now=first)
            except Invalid as error:
                raise table.wrong(str(error)) from None
    return contract


def _failures(table: Table) -> Failures:
    failures = Failures(
        node_gpus=table.count("node_gpus", 8, least=1, most=1_000),
        node_days=table.number("node_days", 0.0, most=100_000),
        repair_hours=table.number("repair_hours", 12.0, least=0.1, most=10_000),
    )
    table.end()
    return failures


def _tenants(table: Table) -> Tenants:
    tenants = Tenants(
        count=table.count("count", 200, least=1, most=1_000_000),
        wallet_nanos=_nanos(table.number("wallet_usd", 1_000_000.0, least=0.01, most=1e8)),
        refilled=table.number("refilled", 1.0, most=1),
    )
    table.end()
    return tenants


def _conduct(table: Table) -> Conduct:
    conduct = Conduct(
        rules=table.text("rules", "sublet", among=tuple(RULES)),
        pricing=table.text("pricing", "bid", among=PRICING),
        confidence=table.number("confidence", 0.95, least=0.5, most=0.9999),
        learn_days=table.number("learn_days", 7.0, least=0.5, most=366),
        bid_hours=table.number("bid_hours", 1.0, least=0.5, most=24),
        min_run_hours=table.number("min_run_hours", 1.0, least=0.1, most=24),
        credit_share=table.number("credit_share", 1.0, most=1),
        credit_cap_hours=table.number("credit_cap_hours", 24.0, most=8_784),
    )
    table.end()
    return conduct


def _days(days: float) -> timedelta:
    return timedelta(seconds=round(days * 86_400))


def _nanos(usd: float) -> int:
    return round(usd * NANOS)
