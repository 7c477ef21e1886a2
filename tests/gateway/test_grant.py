"""How much a wallet grants: never more than it has, and never less than it could."""

from datetime import UTC, datetime
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from sublet.core.money import Rate
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import RICH, Clip, CountFirst, Grant, Need, decide
from sublet.gateway.tariff import Counts, Tariff
from sublet.ledger.transfer import Account
from sublet.market.price import Price
from sublet.metering.store import price_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def price(id_: int, nanos: int, per: int = 1) -> Price:
    return Price(id=id_, sku=str(id_), rate=Rate(nanos=nanos, per=per), happened_at=NOON)


def tariff(input_: int = 10, cached: int = 1, output: int = 40) -> Tariff:
    dearest = price(3, output)
    return Tariff(
        input=price(1, input_), cache_read=price(2, cached), cache_write=price(1, input_),
        output=dearest, reasoning=dearest,
    )  # fmt: skip


def wallet(credit: int, *, held: int = 0) -> Account:
    return Account(
        id=1, code="w", currency="USD", prepaid=True, debits_pending=held, debits_posted=0,
        credits_pending=0, credits_posted=credit,
    )  # fmt: skip


def need(max_tokens: int | None, *, prompt: int = 5, left: int = 100) -> Need:
    return Need(
        prompt_tokens=prompt,
        counted=True,
        max_tokens=max_tokens,
        context_left=left,
        tariff=tariff(),
    )


RATES = st.builds(price, st.just(0), st.integers(0, 10**6), st.sampled_from([1, 3, 7, 1000, 10**6]))
COUNTERS = ("input", "cache_read", "cache_write", "output", "reasoning")
TARIFFS = st.tuples(*[RATES] * 5).map(
    lambda five: Tariff(
        **{
            name: Price(id=id_, sku=name, rate=one.rate, happened_at=NOON)
            for id_, (name, one) in enumerate(zip(COUNTERS, five, strict=True))
        }
    )
)
TOKENS = st.integers(0, 10_000)


@given(TARIFFS, st.tuples(*[TOKENS] * 5))
def test_no_charge_exceeds_its_hold(prices: Tariff, used: tuple[int, ...]) -> None:
    counts = Counts(**{f"{name}_tokens": used[at] for at, name in enumerate(COUNTERS)})
    held = prices.most(prompt_tokens=counts.prompt_tokens, output_tokens=counts.completion_tokens)
    assert held.nanos > 0
    assert price_of(prices.lines(counts)).nanos <= held.nanos
    assert sum(line.quantity for line in prices.lines(counts)) == counts.total == sum(used)


@given(st.tuples(*[TOKENS] * 5), TOKENS, TOKENS)
def test_what_is_believed_fits_the_hold_and_adds_up(
    used: tuple[int, ...], prompt: int, output: int
) -> None:
    counts = Counts(**{f"{name}_tokens": used[at] for at, name in enumerate(COUNTERS)})
    believed = counts.at_most(prompt_tokens=prompt, output_tokens=output)
    assert believed.prompt_tokens == min(prompt, counts.prompt_tokens)
    assert believed.completion_tokens == min(output, counts.completion_tokens)


@given(TARIFFS, st.integers(0, 10**10), TOKENS, st.none() | st.integers(1, 10_000))
def test_a_grant_is_paid_for_and_as_much_as_can_be(
    prices: Tariff, credit: int, prompt: int, max_tokens: int | None
) -> None:
    asked = Need(
        prompt_tokens=prompt, counted=True, max_tokens=max_tokens, context_left=4096, tariff=prices
    )
    decided = decide(asked, wallet(credit))
    assert not isinstance(decided, CountFirst)
    if isinstance(decided, Failure):
        assert decided.kind in {Kind.UNPAID, Kind.OVER_BUDGET}
        one = prices.most(prompt_tokens=prompt, output_tokens=1).nanos
        assert (decided.kind is Kind.UNPAID) or one <= credit
        least = min(max_tokens or 1, 4096)
        assert prices.most(prompt_tokens=prompt, output_tokens=least).nanos > credit
        return
    assert 1 <= decided.most_output <= min(max_tokens or 4096, 4096)
    assert decided.amount.nanos <= credit
    if decided.clipped_by is Clip.WALLET:
        one_more = prices.most(prompt_tokens=prompt, output_tokens=decided.most_output + 1)
        dearest = max(
            prices.output, prices.reasoning, key=lambda it: Fraction(it.rate.nanos, it.rate.per)
        )
        slack = Fraction(dearest.rate.nanos, dearest.rate.per) + 4
        assert one_more.nanos > credit - slack


def test_a_number_is_granted_whole_or_refused() -> None:
    decided = decide(need(10), wallet(5 * 10 + 10 * 40))
    assert isinstance(decided, Grant)
    assert (decided.max_tokens, decided.clipped_by) == (10, None)
    refused = decide(need(10), wallet(5 * 10 + 10 * 40 - 1))
    assert isinstance(refused, Failure)
    assert refused.kind is Kind.OVER_BUDGET
    assert "set max_tokens to 9 or less, or add credit" in refused.message
    assert refused.row.retry is False


def test_no_number_takes_what_the_wallet_pays_or_the_context_holds() -> None:
    by_wallet = decide(need(None), wallet(5 * 10 + 7 * 40 + 39))
    by_context = decide(need(None), wallet(10**9))
    assert isinstance(by_wallet, Grant)
    assert isinstance(by_context, Grant)
    assert (by_wallet.max_tokens, by_wallet.clipped_by) == (7, Clip.WALLET)
    # Nobody took anything away: the replica's own limit holds, within the context.
    assert (by_context.max_tokens, by_context.most_output, by_context.clipped_by) == (
        None,
        100,
        None,
    )
    assert isinstance(decide(need(None), wallet(5 * 10 + 39)), Failure)


def test_money_that_is_only_held_is_worth_waiting_for() -> None:
    refused = decide(need(10), wallet(10_000, held=9_999))
    assert isinstance(refused, Failure)
    assert refused.kind is Kind.IN_FLIGHT
    assert refused.row.retry is True


def test_a_replica_that_counts_too_much_is_not_believed() -> None:
    counts = Counts(input_tokens=8, cache_read_tokens=4, output_tokens=9)
    assert counts.at_most(prompt_tokens=10, output_tokens=5) == Counts(
        input_tokens=6, cache_read_tokens=4, output_tokens=5
    )


def test_a_model_without_its_prices_has_no_tariff() -> None:
    prices = {"model:m:input": price(1, 1)}
    assert Tariff.of("m", prices) is None
    both = Tariff.of("m", prices | {"model:m:output": price(2, 2)})
    assert both is not None
    counts = Counts(input_tokens=1, cache_read_tokens=2, output_tokens=0)
    # Without a price of its own, cached input costs what input does: one line for both.
    assert [line.quantity for line in both.lines(counts)] == [3]


def test_a_bound_is_good_enough_for_the_rich_only() -> None:
    asked = Need(prompt_tokens=50, counted=False, max_tokens=10, context_left=4095, tariff=tariff())
    assert asked.most_tokens == 60
    rich = asked.most.nanos * RICH
    assert isinstance(decide(asked, wallet(rich)), Grant)
    assert isinstance(decide(asked, wallet(rich - 1)), CountFirst)


def test_more_than_the_context_holds_is_clipped_and_said() -> None:
    decided = decide(need(101), wallet(10**9))
    assert isinstance(decided, Grant)
    assert (decided.max_tokens, decided.clipped_by) == (100, Clip.CONTEXT)
