"""Whether to buy an answer, and of whom: decided from prices, quota, and how suppliers did lately.

A purchase must leave its margin at what the request will most likely use. Where the price could turn
out higher than what the buyer pays, or the margin is missed, it is made only within what the operator
lets be lost a day; the most that it can lose is set aside of that, like any quota. Of those that may
be bought the cheapest is asked first, at the share of cached input it had lately; among about equals,
who answers sooner and fails less. Who mostly failed comes last. Pure: no network, no clock.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import Final

from sublet.suppliers.quota import Limit, Measure, loss_scope, project_scope
from sublet.suppliers.supplier import INPUTS, OUTPUTS, Rates, Source, Terms
from sublet.suppliers.usage import KINDS

LATELY_SECONDS: Final = 180.0
_KEPT: Final = 200
_FEWEST: Final = 3  # calls, before they say that somebody mostly fails
_ABOUT_EQUAL: Final = Fraction(101, 100)


class No(StrEnum):
    """Why something was not bought."""

    OFF = "off"  # the operator's terms say so
    UNABLE = "unable"  # its dialect cannot say what was asked
    TIER = "tier"  # it has no price for the tier
    MARGIN = "margin"  # too little would be left, and nothing may be lost
    LOSS = "loss"  # what may be lost a day is used up
    RESTS = "rests"  # it failed, or asked to be left alone
    QUOTA = "quota"
    FAILED = "failed"  # it was asked, and did not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a request may use at most, and will most likely use."""

    tier: str
    input_tokens: int
    output_tokens: int
    expected_input: int
    expected_output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """What our buyer pays for a token of each kind, in nanos."""

    nanos: Mapping[str, Fraction]


@dataclass(slots=True)
class Record:
    """How a source did lately, in one process."""

    calls: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    firsts: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    cached: float = 0.0  # share of the input that its cache had

    def note(self, *, at: float, ok: bool) -> None:
        self.calls.append((at, ok))

    def first(self, *, at: float, seconds: float) -> None:
        self.firsts.append((at, seconds))

    def input(self, *, cached: int, total: int) -> None:
        if total:
            self.cached += 0.1 * (cached / total - self.cached)

    def failures(self, now: float) -> float:
        """Return the share of its calls that failed lately."""
        while self.calls and self.calls[0][0] < now - LATELY_SECONDS:
            self.calls.popleft()
        if not self.calls:
            return 0.0
        return sum(not ok for _, ok in self.calls) / len(self.calls)

    def mostly_fails(self, now: float) -> bool:
        return self.failures(now) > 0.5 and len(self.calls) >= _FEWEST

    def first_seconds(self, now: float) -> float:
        """Return what its first tokens took lately, the median; 0: not known, so worth a try."""
        while self.firsts and self.firsts[0][0] < now - LATELY_SECONDS:
            self.firsts.popleft()
        waits = sorted(seconds for _, seconds in self.firsts)
        return waits[len(waits) // 2] if waits else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One that may be asked, and what that costs at most and most likely."""

    source: Source
    rates: Rates
    most_nanos: int
    loss_nanos: int  # the most that it can cost us beyond what our buyer pays
    expected: Fraction


def rank(
    sources: Sequence[Source],
    wanted: Wanted,
    sale: Sale,
    terms: Terms,
    records: Mapping[tuple[str, str], Record],
    *,
    now: float,
) -> tuple[list[Candidate], Counter[No]]:
    """Return whom to ask, in order, and why not the others."""
    nos: Counter[No] = Counter()
    if not terms.enabled:
        nos[No.OFF] += len(sources)
        return [], nos
    found = []
    for source in sources:
        rates = source.rates.get(wanted.tier)
        if rates is None:
            nos[No.TIER] += 1
            continue
        record = records.get(source.key, Record())
        candidate = _weigh(source, rates, wanted, sale, record, terms)
        if candidate is None:
            nos[No.MARGIN] += 1
        else:
            found.append(candidate)
    well = [one for one in found if not records.get(one.source.key, Record()).mostly_fails(now)]
    cheapest = min((one.expected for one in well or found), default=Fraction(0))

    def order(one: Candidate) -> tuple[bool, Fraction, float, float]:
        record = records.get(one.source.key, Record())
        equal = cheapest <= one.expected <= cheapest * _ABOUT_EQUAL
        price = cheapest if equal else one.expected
        return record.mostly_fails(now), price, record.first_seconds(now), record.failures(now)

    return sorted(found, key=order), nos


def _weigh(
    source: Source, rates: Rates, wanted: Wanted, sale: Sale, record: Record, terms: Terms
) -> Candidate | None:
    cached = Fraction(record.cached).limit_denominator(1000)
    likely = {
        "input": wanted.expected_input * (1 - cached),
        "cache_read": wanted.expected_input * cached,
        "output": Fraction(wanted.expected_output),
    }
    cost = sum((rates.each(kind) * n for kind, n in likely.items()), Fraction(0))
    paid = sum((sale.nanos[kind] * n for kind, n in likely.items()), Fraction(0))
    over = {kind: max(Fraction(0), rates.each(kind) - sale.nanos[kind]) for kind in KINDS}
    loss = (
        max(over[kind] for kind in INPUTS) * wanted.input_tokens
        + max(over[kind] for kind in OUTPUTS) * wanted.output_tokens
    )
    short = paid - cost < terms.margin * paid
    if (loss or short) and not terms.loss_nanos:
        return None
    rounding = len(KINDS) if loss else 0  # each kind is rounded by itself, theirs and ours
    return Candidate(
        source=source,
        rates=rates,
        most_nanos=rates.most(
            input_tokens=wanted.input_tokens, output_tokens=wanted.output_tokens
        ).nanos,
        loss_nanos=-(-loss.numerator // loss.denominator) + rounding,
        expected=cost,
    )


def claims(
    candidate: Candidate, wanted: Wanted, limits: Iterable[Limit]
) -> Iterator[tuple[Limit, int]]:
    """Return what must be free of which limits before it may be asked."""
    source = candidate.source
    ours = project_scope(source.supplier.project), loss_scope(source.deployment)
    amounts = {
        Measure.REQUESTS: 1,
        Measure.TOKENS: wanted.input_tokens + wanted.output_tokens,
        Measure.INPUT_TOKENS: wanted.input_tokens,
        Measure.OUTPUT_TOKENS: wanted.output_tokens,
        Measure.SPEND: candidate.most_nanos,
        Measure.LOSS: candidate.loss_nanos,
    }
    for limit in limits:
        if (
            limit.scope in ours
            and limit.model in (None, source.model)
            and limit.tier in (None, wanted.tier)
            and amounts[limit.measure]
        ):
            yield limit, amounts[limit.measure]
