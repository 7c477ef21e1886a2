"""Own cost beside suppliers' prices over time: when to buy, and when to build.

    own cost of a million tokens     GPU-hours x cost of one / tokens made, that day
    price of a supplier              the same mix of tokens, at the prices that held that day
    break-even                       tokens a day at which a replica of our own costs as much as buying

Pure: no network, no database. Money is in nanos; None is what nobody measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from fractions import Fraction
from typing import Final

from sublet.suppliers.supplier import Rates

# Of a million tokens, where nothing was used yet: three of input for one of output.
_USUAL_INPUT: Final = Fraction(3, 4)
_HOURS: Final = 24


class Verdict(StrEnum):
    BUY = "buy"  # even a full replica costs more than buying
    FILL = "fill"  # a full replica costs less, ours at their load do not: sell more, or have fewer
    OWN = "own"  # own replicas cost less as they are
    BUILD = "build"  # and so much is bought that another replica would pay
    UNKNOWN = "unknown"  # what a GPU-hour costs, or how fast a replica is, was not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What own replicas of a model made and cost in a time."""

    input_tokens: int
    output_tokens: int
    cost_nanos: float | None
    hour_nanos: int | None  # of a GPU
    gpus: int  # of a replica
    output_per_second: float | None  # of a replica that is full

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def per_million(self) -> float | None:
        if self.cost_nanos is None or not self.tokens:
            return None
        return self.cost_nanos / self.tokens * 1e6

    @property
    def replica_day_nanos(self) -> float | None:
        return None if self.hour_nanos is None else float(self.hour_nanos * self.gpus * _HOURS)

    def share_of_input(self) -> Fraction:
        return Fraction(self.input_tokens, self.tokens) if self.tokens else _USUAL_INPUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    supplier: str
    model: str
    per_million: float  # of the day's mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day of a model."""

    day: date
    own: Own
    offers: Sequence[Offered]  # cheapest first
    bought_tokens: int
    bought_nanos: int


def offered(rates: Mapping[tuple[str, str], Rates], own: Own) -> list[Offered]:
    """Return what each source takes for a million tokens of our mix, cheapest first."""
    share = own.share_of_input()
    found = [
        Offered(
            supplier=supplier,
            model=model,
            per_million=float(
                (one.each("input") * share + one.each("output") * (1 - share)) * 1_000_000
            ),
        )
        for (supplier, model), one in rates.items()
    ]
    return sorted(found, key=lambda it: (it.per_million, it.supplier))


def full_per_million(own: Own) -> float | None:
    """Return what a million tokens cost of a replica that is full all day, at our mix."""
    day = own.replica_day_nanos
    output = 1 - own.share_of_input()
    if day is None or not own.output_per_second or not output:
        return None
    tokens = own.output_per_second * 3600 * _HOURS / float(output)
    return day / tokens * 1e6


def break_even(own: Own, price_per_million: float) -> float | None:
    """Return how many tokens a day a replica must save from being bought, to pay for itself."""
    day = own.replica_day_nanos
    return None if day is None or not price_per_million else day / price_per_million * 1e6


def judge(days: Sequence[Day]) -> Verdict:
    """Say what the last of these days is for."""
    last = days[-1]
    if not last.offers:
        return Verdict.UNKNOWN
    price, own = last.offers[0].per_million, last.own
    full = full_per_million(own)
    needed = break_even(own, price)
    if full is None or needed is None:
        return Verdict.UNKNOWN
    if full >= price:
        return Verdict.BUY
    bought = sum(day.bought_tokens for day in days) / len(days)
    if bought > needed:
        return Verdict.BUILD
    if own.per_million is None or own.per_million >= price:
        return Verdict.FILL
    return Verdict.OWN
