"""What would become of the cash: a fleet, its contracts and a price of GPU-hours, month by month.

    revenue   = contracted hours at their prices + other sold hours at the market's
    EBITDA    = revenue - power - upkeep - a share of revenue
    free cash = EBITDA - interest - principal - what is bought
    DSCR      = EBITDA / (interest + principal), of a quarter: the covenant

All are estimates in USD, as floats. The same scenario and seed give the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.core.money import NANOS
from sublet.finance.asset import Debt, Kind, Lot, add_months, months_between
from sublet.finance.curves import PriceCurve

Floats = NDArray[np.float64]
HOURS_A_MONTH: Final = 730.0
_PERCENTILES: Final = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """A bulk deal, taken or paid for."""

    tenant: str
    gpus: int
    usd_per_gpu_hour: float
    first: int  # month, from the scenario's start on
    months: int
    renews: bool  # at the market's price of that month, for as long again


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens in a month.

    kind:
        non_renewal     contracts that end from then on are not renewed
        recall          the owner takes `share` of all GPUs back for `months`; contracts pay for less
        default         the largest tenant by revenue pays no more, and its GPUs go to the market
        new_generation  the market's price falls by `share` within `months`: the same for less
        utilisation     `share` of what is for sale is sold from then on
    """

    kind: str
    month: int
    share: float
    months: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dice:
    """How far the months may stray from the scenario's path, for Monte Carlo."""

    price_volatility: float  # a year, of the price's logarithm
    sold_spread: float  # standard deviation of the share sold


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    name: str
    about: str
    start: date  # the first day of a month
    quarters: int
    lots: Sequence[Lot]
    price: PriceCurve
    internal_share: float  # of all GPUs that internal jobs hold
    sold_share: float  # of what is left over and not under contract
    revenue_cost_share: float  # of revenue: payment, support, sales
    covenant_dscr: float  # 0: none
    contracts: Sequence[Contract]
    events: Sequence[Event]
    dice: Dice

    @property
    def months(self) -> int:
        return 3 * self.quarters


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarter:
    """One quarter; USD."""

    start: date
    price: float  # mean of the market's per GPU-hour
    gpus: float  # mean in service
    sold: float  # mean GPUs that were paid for
    revenue: float
    power: float
    other_cost: float
    interest: float
    principal: float
    bought: float
    free_cash: float
    cumulative: float
    dscr: float | None  # None: nothing was due
    covenant_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a scenario comes to."""

    quarters: Sequence[Quarter]
    negative_from: date | None  # the first quarter whose free cash is below nothing
    covenant_broken_from: date | None
    break_even: (
        float | None
    )  # flat market price at which the cash adds up to nothing; None: at none


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What many runs with dice come to: percentiles of the cumulative cash at each quarter's end."""

    runs: int
    percentiles: Sequence[tuple[int, Sequence[float]]]
    negative_share: float  # of the runs whose cash adds up to less than nothing in the end
    covenant_broken_share: float


def outlook(scenario: Scenario) -> Outlook:
    """Follow a scenario's own path, without dice."""
    prices, sold = _paths(scenario)
    months = _months(scenario, prices, sold)
    quarters = _quarters(scenario, prices, months)
    negative = next((q.start for q in quarters if q.free_cash < 0), None)
    broken = next((q.start for q in quarters if not q.covenant_kept), None)
    return Outlook(
        quarters=quarters,
        negative_from=negative,
        covenant_broken_from=broken,
        break_even=_break_even(scenario, sold),
    )


def monte_carlo(scenario: Scenario, *, runs: int, seed: int) -> Spread:
    """Run a scenario many times with dice on its prices and on the share sold.

    The price is the scenario's path times a random walk without drift in its mean, so that the
    mean over runs stays on the path.
    """
    dice = np.random.default_rng(seed)
    prices, sold = _paths(scenario)
    monthly = scenario.dice.price_volatility / np.sqrt(12)
    cash = np.zeros((runs, scenario.quarters))
    broken = 0
    for run in range(runs):
        walk = np.cumsum(dice.normal(-(monthly**2) / 2, monthly, scenario.months))
        share = np.clip(sold + dice.normal(0, scenario.dice.sold_spread, scenario.months), 0, 1)
        thrown = prices * np.exp(walk)
        quarters = _quarters(scenario, thrown, _months(scenario, thrown, share))
        cash[run] = [q.cumulative for q in quarters]
        broken += any(not q.covenant_kept for q in quarters)
    return Spread(
        runs=runs,
        percentiles=[
            (percent, [float(v) for v in np.percentile(cash, percent, axis=0)])
            for percent in _PERCENTILES
        ],
        negative_share=float(np.mean(cash[:, -1] < 0)),
        covenant_broken_share=broken / runs,
    )


def debt_service(debt: Debt, cost_usd: float, age: int) -> tuple[float, float]:
    """Return interest and principal of the payment at the end of month `age`, from 0 on.

    Level payments: L r / (1 - (1 + r)^-n), of which r x balance is interest.
    """
    loan, count = cost_usd * debt.share, debt.months
    if not 0 <= age < count:
        return 0.0, 0.0
    rate = debt.rate / 12
    if rate == 0:
        return 0.0, loan / count
    level = loan * rate / (1 - (1 + rate) ** -count)
    balance = loan * (1 + rate) ** age - level * ((1 + rate) ** age - 1) / rate
    interest = balance * rate
    return interest, level - interest


def _paths(scenario: Scenario) -> tuple[Floats, Floats]:
    """Return the market's price and the share sold, month by month, with what happens to them."""
    months = np.arange(scenario.months)
    prices = np.array([scenario.price.at(add_months(scenario.start, int(m))) for m in months])
    sold = np.full(scenario.months, scenario.sold_share)
    for event in scenario.events:
        if event.kind == "new_generation":
            gone = np.clip((months - event.month + 1) / max(event.months, 1), 0, 1)
            prices = prices * (1 - event.share * gone)
        elif event.kind == "utilisation":
            sold[event.month :] = event.share
    return prices, sold


def _months(scenario: Scenario, prices: Floats, sold: Floats) -> Floats:
    """Return by month: GPUs, sold GPUs, revenue, power, other cost, interest, principal, bought."""
    out = np.zeros((scenario.months, 8))
    for month in range(scenario.months):
        out[month, [0, 3, 4, 5, 6, 7]] = _owning(scenario, month)
    contracted, paid = _contracts(scenario, prices)
    internal = np.full(scenario.months, scenario.internal_share)
    for event in scenario.events:
        if event.kind == "recall":
            internal[event.month : event.month + event.months] += event.share
    gpus = out[:, 0]
    left = gpus * (1 - np.clip(internal, 0, 1))
    # What is recalled or was never bought is not delivered, and not paid for.
    kept = np.divide(np.minimum(contracted, left), contracted, out=np.zeros_like(left),
                     where=contracted > 0)  # fmt: skip
    loose = np.maximum(left - contracted, 0) * sold
    out[:, 1] = contracted * kept + loose
    out[:, 2] = (paid * kept + loose * prices) * HOURS_A_MONTH
    busy = np.minimum(out[:, 1] + gpus * np.clip(internal, 0, 1), gpus)
    share = np.divide(busy, gpus, out=np.zeros_like(busy), where=gpus > 0)
    out[:, 3] = share * out[:, 3] + (1 - share) * _idle_power(scenario)
    out[:, 4] += scenario.revenue_cost_share * out[:, 2]
    return out


def _owning(scenario: Scenario, month: int) -> tuple[float, float, float, float, float, float]:
    """Return GPUs, power at full work, upkeep, interest, principal and what is bought."""
    gpus = power = upkeep = interest = principal = bought = 0.0
    today = add_months(scenario.start, month)
    for lot in scenario.lots:
        cost = lot.cost.nanos / NANOS
        age = months_between(lot.in_service_on, today)
        if months_between(lot.bought_on, today) == 0:
            bought += cost * (1 - (lot.debt.share if lot.debt else 0))
        if 0 <= age < lot.life_months:
            gpus += lot.gpus
            power += lot.power_usd(lot.gpus * HOURS_A_MONTH, 0)
            upkeep += lot.usd_per_month
        if age == lot.life_months:
            bought -= lot.left.nanos / NANOS
        if lot.debt is not None:
            due = debt_service(lot.debt, cost, age)
            interest, principal = interest + due[0], principal + due[1]
    return gpus, power, upkeep, interest, principal, bought


def _idle_power(scenario: Scenario) -> Floats:
    out = np.zeros(scenario.months)
    for month in range(scenario.months):
        today = add_months(scenario.start, month)
        for lot in scenario.lots:
            if lot.kind is Kind.GPUS and (
                0 <= months_between(lot.in_service_on, today) < lot.life_months
            ):
                out[month] += lot.power_usd(0, lot.gpus * HOURS_A_MONTH)
    return out


def _contracts(scenario: Scenario, prices: Floats) -> tuple[Floats, Floats]:
    """Return the GPUs under contract in each month, and what an hour of all of them is paid."""
    gpus, paid = np.zeros(scenario.months), np.zeros(scenario.months)
    ends = [event.month for event in scenario.events if event.kind == "non_renewal"]
    stops = [event.month for event in scenario.events if event.kind == "default"]
    largest = _largest(scenario.contracts)
    for contract in scenario.contracts:
        first, price = contract.first, contract.usd_per_gpu_hour
        while first < scenario.months:
            end = first + contract.months
            for month in range(max(first, 0), min(end, scenario.months)):
                if contract.tenant == largest and any(month >= stop for stop in stops):
                    break
                gpus[month] += contract.gpus
                paid[month] += contract.gpus * price
            if not contract.renews or end >= scenario.months or any(end >= at for at in ends):
                break
            first, price = end, float(prices[max(end, 0)])
    return gpus, paid


def _largest(contracts: Sequence[Contract]) -> str:
    """Return the tenant with the most revenue an hour; "" where there is none."""
    hourly: dict[str, float] = {}
    for one in contracts:
        hourly[one.tenant] = hourly.get(one.tenant, 0.0) + one.gpus * one.usd_per_gpu_hour
    return max(hourly, key=lambda tenant: (hourly[tenant], tenant), default="")


def _quarters(scenario: Scenario, prices: Floats, months: Floats) -> list[Quarter]:
    out = []
    cumulative = 0.0
    for number in range(scenario.quarters):
        rows = months[3 * number : 3 * number + 3]
        gpus, sold, revenue, power, other, interest, principal, bought = (
            float(value) for value in rows.sum(axis=0)
        )
        earned, due = revenue - power - other, interest + principal
        free = earned - due - bought
        cumulative += free
        dscr = earned / due if due > 0 else None
        out.append(
            Quarter(
                start=add_months(scenario.start, 3 * number),
                price=float(prices[3 * number : 3 * number + 3].mean()),
                gpus=gpus / 3,
                sold=sold / 3,
                revenue=revenue,
                power=power,
                other_cost=other,
                interest=interest,
                principal=principal,
                bought=bought,
                free_cash=free,
                cumulative=cumulative,
                dscr=dscr,
                covenant_kept=dscr is None or dscr >= scenario.covenant_dscr,
            )
        )
    return out


def _break_even(scenario: Scenario, sold: Floats) -> float | None:
    """Return the flat market price at which the cash of all quarters adds up to nothing.

    Revenue is linear in it (contracts that are renewed, are at it), so two points tell.
    """

    def cash(price: float) -> float:
        flat = np.full(scenario.months, price)
        rows = _months(replace(scenario, events=_without_price(scenario.events)), flat, sold)
        return float((rows[:, 2] - rows[:, 3:].sum(axis=1)).sum())

    at_nothing, at_one = cash(0.0), cash(1.0)
    if at_one <= at_nothing:
        return None
    return max(-at_nothing / (at_one - at_nothing), 0.0)


def _without_price(events: Sequence[Event]) -> list[Event]:
    return [event for event in events if event.kind not in {"new_generation", "utilisation"}]
