"""Whom to buy of: the cheapest that leaves its margin, and is well; and when to buy at all."""

from dataclasses import replace
from datetime import UTC, date, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.suppliers.choice import No, Record, Sale, Wanted, claims, rank
from sublet.suppliers.hedge import Day, Own, Verdict, judge, offered
from sublet.suppliers.quota import Limit, Measure, Span
from sublet.suppliers.supplier import Dialect, Rates, Source, Supplier, Terms
from sublet.suppliers.usage import KINDS, Used

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
WANTED = Wanted(
    tier="default", input_tokens=400, output_tokens=100, expected_input=100, expected_output=50
)
SALE = Sale(nanos=dict.fromkeys(KINDS, Fraction(100)))


def source(name: str, price: int, **kinds: int) -> Source:
    nanos = dict.fromkeys(KINDS, price) | kinds
    rates = Rates(id=1, tier="default", nanos=nanos, per=1, happened_at=NOON)
    supplier = Supplier(name=name, dialect=Dialect.OPENAI, url="https://x.example", project=name)
    return Source(supplier=supplier, model="m", deployment="d", rates={"default": rates})


def names(
    sources: list[Source], records: dict[tuple[str, str], Record] | None = None, **terms: object
) -> list[str]:
    found, _ = rank(
        sources,
        WANTED,
        SALE,
        replace(Terms(), **terms),
        records or {},
        now=100.0,  # type: ignore[arg-type]
    )
    return [one.source.supplier.name for one in found]


def test_the_cheapest_comes_first_and_what_leaves_no_margin_not_at_all() -> None:
    sources = [source("a", 60), source("b", 50), source("c", 101)]
    assert names(sources) == ["b", "a"]
    assert names(sources, margin=Fraction(45, 100)) == ["b"]
    assert names(sources, margin=Fraction(99, 100)) == []
    assert names(sources, enabled=False) == []
    assert names(sources, loss_nanos=10**9) == ["b", "a", "c"]


def test_cached_input_makes_who_has_it_cheaper_than_the_list_says() -> None:
    plain, caching = source("plain", 50), source("caching", 55, cache_read=5)
    record = Record()
    for _ in range(50):
        record.input(cached=80, total=100)
    assert names([plain, caching]) == ["plain", "caching"]
    assert names([plain, caching], {("caching", "m"): record}) == ["caching", "plain"]


def test_of_about_equals_who_answers_sooner_and_fails_less_comes_first() -> None:
    slow, quick, bad = Record(), Record(), Record()
    slow.first(at=99, seconds=2.0)
    quick.first(at=99, seconds=0.1)
    for ok in (True, False, False, False):
        bad.note(at=99, ok=ok)
    sources = [source("slow", 1000), source("quick", 1001), source("bad", 10)]
    records = {("slow", "m"): slow, ("quick", "m"): quick, ("bad", "m"): bad}
    assert names(sources, records, loss_nanos=10**9) == ["quick", "slow", "bad"]
    old = Record()
    for _ in range(9):
        old.note(at=-500, ok=False)
    assert names([source("x", 50), source("old", 10)], {("old", "m"): old}) == ["old", "x"]


@given(
    st.fixed_dictionaries({kind: st.integers(0, 300) for kind in KINDS}),
    st.tuples(*[st.integers(0, 100)] * 4),
    st.tuples(*[st.integers(0, 50)] * 2),
)
def test_no_use_within_what_was_asked_loses_more_than_was_set_aside(
    nanos: dict[str, int], inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    used = Used(**dict(zip(KINDS, (*inputs, *outputs), strict=True)))
    one = source("x", 0, **nanos)
    (candidate,), _ = rank([one], WANTED, SALE, Terms(loss_nanos=10**12), {}, now=0.0)
    cost = candidate.rates.cost(used).nanos
    paid = sum(SALE.nanos[kind] * n for kind, n in used.quantities())
    assert cost - paid <= candidate.loss_nanos
    assert cost <= candidate.most_nanos
    sure, _ = rank([one], WANTED, SALE, Terms(), {}, now=0.0)
    assert not sure or cost <= paid, "without leave to lose, nothing can be lost"


def test_every_limit_that_it_falls_under_is_claimed() -> None:
    limits = [
        Limit(id=n, scope=scope, measure=measure, span=Span.MINUTE, amount=9, model=model)
        for n, (scope, measure, model) in enumerate(
            [
                ("project:a", Measure.REQUESTS, None), ("project:a", Measure.TOKENS, "m"),
                ("project:a", Measure.TOKENS, "other"), ("project:b", Measure.REQUESTS, None),
                ("project:a", Measure.SPEND, None), ("loss:d", Measure.LOSS, None),
            ]
        )
    ]  # fmt: skip
    (candidate,), _ = rank([source("a", 50)], WANTED, SALE, Terms(), {}, now=0.0)
    claimed = {limit.id: amount for limit, amount in claims(candidate, WANTED, limits)}
    assert claimed == {0: 1, 1: 500, 4: candidate.most_nanos}, "what cannot lose needs no leave"
    (dear,), _ = rank([source("a", 150)], WANTED, SALE, Terms(loss_nanos=1), {}, now=0.0)
    assert dict(claims(dear, WANTED, limits[5:])) == {limits[5]: dear.loss_nanos}
    _, nos = rank([source("a", 150)], WANTED, SALE, Terms(), {}, now=0.0)
    assert nos == {No.MARGIN: 1}


# ── the hedge ────────────────────────────────────────────────────────────────────────────

HOUR = 3_600_000_000  # nanos of a GPU: 24 of them are 86.4 billion a day


def a_day(*, price: int, own: int, bought: int = 0, speed: float | None = 100.0) -> Day:
    """A replica that is full makes 8.64 million tokens of output, which cost it 10,000 nanos each."""
    mine = Own(
        input_tokens=0, output_tokens=own, cost_nanos=24.0 * HOUR, hour_nanos=HOUR, gpus=1,
        output_per_second=speed,
    )  # fmt: skip
    rates = source("x", price).rates["default"]
    return Day(
        day=date(2026, 3, 2), own=mine, offers=offered({("x", "m"): rates}, mine),
        bought_tokens=bought, bought_nanos=bought * price,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("day", "verdict"),
    [
        (a_day(price=9_000, own=8_640_000), Verdict.BUY),  # even full it costs 10,000
        (a_day(price=12_000, own=8_640_000), Verdict.OWN),
        (a_day(price=12_000, own=864_000), Verdict.FILL),  # at a tenth of the load: 100,000
        (a_day(price=12_000, own=8_640_000, bought=7_200_001), Verdict.BUILD),
        (a_day(price=12_000, own=8_640_000, bought=7_200_000), Verdict.OWN),
        (a_day(price=12_000, own=8_640_000, speed=None), Verdict.UNKNOWN),
    ],
)
def test_when_to_buy_and_when_to_build(day: Day, verdict: Verdict) -> None:
    assert judge([day]) is verdict
