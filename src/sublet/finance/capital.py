"""What to do about capital: buy, lease in, sell what is left over, or part with GPUs.

A linear programme over months (HiGHS):

    minimise    what is bought + leased in + power - what is sold - what is parted with
                - what the rest is worth at the end
    so that     owned + leased in - sold >= internal demand    in each month
                sold <= what is owned and may be sold

What is bought arrives after the lead time; an owned GPU that internal jobs do not hold and that
is not sold sits idle. Prices are USD, GPUs need not come out whole. Estimates, as floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import highspy

from sublet.core.errors import Invalid, Unavailable

HOURS_A_MONTH: Final = 730.0
_SLIGHT: Final = 0.02  # of the fleet: less is no verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, month by month; all sequences have the same length."""

    demand: Sequence[float]  # GPUs that internal jobs will need
    owned: Sequence[float]  # GPUs there are already, less those that reach the end of their life
    rent: Sequence[float]  # USD per GPU-hour at which others' GPUs are leased in
    sale: Sequence[float]  # USD per GPU-hour that one's own bring
    value: Sequence[float]  # USD that a GPU brings when it is parted with
    cost: float  # USD of a new GPU, with its share of all around it
    power: float  # USD of one GPU-hour's power
    sold_share: float  # of what is offered that is taken
    lead_months: int  # from an order to its GPUs
    life_months: int  # of a new GPU

    def __post_init__(self) -> None:
        """Raises Invalid: months are missing, or a figure is out of its bounds."""
        count = len(self.demand)
        if not count:
            raise Invalid("ask about a month at least")
        for name in ("owned", "rent", "sale", "value"):
            if len(getattr(self, name)) != count:
                raise Invalid(f"{name} has {len(getattr(self, name))} months, and demand {count}")
        for name in ("demand", "owned", "rent", "sale", "value"):
            if any(not 0 <= value < 1e12 for value in getattr(self, name)):
                raise Invalid(f"{name} must not be negative")
        if not (self.cost > 0 and self.power >= 0 and 0 <= self.sold_share <= 1):
            raise Invalid(
                "a GPU costs more than nothing, power is not negative, a share lies in 0 to 1"
            )
        if self.lead_months < 0 or self.life_months <= 0:
            raise Invalid("a lead time is not negative, and a life is a month or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The least-cost mix, month by month, in GPUs."""

    bought: Sequence[float]  # ordered in that month
    leased_in: Sequence[float]
    sold: Sequence[float]  # offered and taken, of one's own
    parted: Sequence[float]  # sold for good in that month
    idle: Sequence[float]
    cost: float  # USD, of all months
    cost_doing_nothing: (
        float  # neither buying nor parting: leasing in what is short, selling the rest
    )
    verdict: str  # 'timing mismatch', 'overbuild', 'short' or 'balanced'
    because: str


def best_mix(question: Question) -> Answer:
    """Find the least-cost mix, and say what the surplus is.

    Raises:
        Unavailable: the solver gave up.
    """
    best = _solve(question, still=False)
    still = _solve(question, still=True)
    verdict, because = _verdict(question, best)
    return Answer(
        bought=best["bought"], leased_in=best["leased_in"], sold=best["sold"],
        parted=best["parted"], idle=best["idle"], cost=best["cost"],
        cost_doing_nothing=still["cost"], verdict=verdict, because=because,
    )  # fmt: skip


def _solve(question: Question, *, still: bool) -> dict[str, Any]:
    months = range(len(question.demand))
    last = len(question.demand) - 1
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    none = 0.0 if still else highspy.kHighsInf
    final = question.value[last]

    def left(month: int) -> float:
        """Return what a GPU ordered in `month` is worth at the end."""
        if month + question.lead_months > last:
            return question.cost  # not here yet: it counts for what was paid
        age = last - month - question.lead_months
        return final * max(1 - age / question.life_months, 0.0)

    add: Any = solver.addVariable
    bought = [add(0.0, none, question.cost - left(m)) for m in months]
    parted = [add(0.0, none, final - question.value[m]) for m in months]
    leased = [add(0.0, highspy.kHighsInf, question.rent[m] * HOURS_A_MONTH) for m in months]
    # Of two offered one may be taken: the other idles, and earns nothing.
    earned = [question.sale[m] - question.power for m in months]
    sold = [add(0.0, highspy.kHighsInf, -earned[m] * HOURS_A_MONTH) for m in months]
    owned = []
    for month in months:
        there: Any = question.owned[month]
        for order in range(month - question.lead_months + 1):
            if month - order - question.lead_months < question.life_months:
                there = there + bought[order]
        for earlier in range(month + 1):
            there = there - parted[earlier]
        owned.append(there)
    for month in months:
        if not isinstance(owned[month], float | int):
            solver.addConstr(owned[month] >= 0)
        solver.addConstr(owned[month] + leased[month] >= question.demand[month])
        # Sold GPUs are owned ones beyond demand, times the share that is taken.
        share = question.sold_share
        solver.addConstr(
            sold[month] <= share * (owned[month] + leased[month] - question.demand[month])
        )
        solver.addConstr(sold[month] <= share * owned[month])
    solver.minimize()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise Unavailable(f"the best mix was not found: {solver.getModelStatus()}")
    values = list(solver.getSolution().col_value)
    count = len(question.demand)

    def of(place: int) -> list[float]:
        return [float(value) for value in values[place * count : (place + 1) * count]]

    here = {"bought": of(0), "parted": of(1), "leased_in": of(2), "sold": of(3)}
    idle = []
    for month in months:
        there = question.owned[month] - sum(here["parted"][: month + 1])
        for order in range(month - question.lead_months + 1):
            if month - order - question.lead_months < question.life_months:
                there += here["bought"][order]
        busy = question.demand[month] - here["leased_in"][month] + here["sold"][month]
        idle.append(max(there - busy, 0.0))
    running = sum(min(question.demand[m], question.owned[m]) for m in months)
    base = running * question.power * HOURS_A_MONTH - final * question.owned[last]
    cost = float(solver.getInfo().objective_function_value) + base
    return here | {"idle": idle, "cost": cost}


def _verdict(question: Question, best: dict[str, Any]) -> tuple[str, str]:
    """Say whether today's surplus waits for demand that comes, or will never be needed."""
    fleet = max(question.owned[0], 1.0)
    surplus = question.owned[0] - question.demand[0]
    parted, bought = sum(best["parted"]), sum(best["bought"])
    reaches = f"internal demand reaches {max(question.demand):.0f}"
    if parted > _SLIGHT * fleet:
        return (
            "overbuild",
            f"{parted:.0f} of {fleet:.0f} GPUs bring more parted with than kept: {reaches} at most",
        )
    if bought > _SLIGHT * fleet:
        return (
            "short",
            f"buying {bought:.0f} GPUs costs less than leasing them in: {reaches}",
        )
    if surplus > _SLIGHT * fleet:
        return (
            "timing mismatch",
            f"{surplus:.0f} GPUs are left over today, and bring more kept than parted with: {reaches}",
        )
    return "balanced", "what is owned is what internal jobs need, within 2 per cent of the fleet"
