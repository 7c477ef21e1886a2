"""A supplier's invoice beside our records: each difference is named, and they add up to all of it."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from random import Random

import pytest

from sublet.core.errors import Invalid
from sublet.core.money import NANOS
from sublet.suppliers.invoice import Bill, What, read, reconcile
from sublet.suppliers.usage import KINDS

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def bill(n: int, **more: int) -> Bill:
    tokens = dict.fromkeys(KINDS, 0) | {"input": 100, "output": 10 + n} | more
    return Bill(
        id=str(n), supplier_request=f"r{n}", happened_at=NOON + timedelta(hours=6 * n),
        model="big", tier="default", tokens=tokens, nanos=1_000 * sum(tokens.values()),
        basis="reported",
    )  # fmt: skip


BILLS = [bill(n) for n in range(4)]  # two days of two


def row(one: Bill, *, output: int | None = None, nanos: int | None = None) -> str:
    made = one.tokens["output"] if output is None else output
    usd = Fraction(one.nanos if nanos is None else nanos, NANOS)
    return f"{one.supplier_request},{one.tokens['input']},{made},{float(usd):.9f}\n"


HEAD = "request_id,input_tokens,output_tokens,amount_usd\n"


def found(text: str) -> list[tuple[What, int]]:
    reconciled = reconcile(read(text), BILLS)
    assert reconciled.unexplained == 0
    assert all(one.where and one.says for one in reconciled.differences)
    return [(one.what, int(one.nanos)) for one in reconciled.differences]


def test_an_invoice_that_says_what_we_recorded_has_no_difference() -> None:
    assert found(HEAD + "".join(map(row, BILLS))) == []


@pytest.mark.parametrize(
    ("rows", "differences"),
    [
        ([row(one) for one in BILLS[1:]], [(What.MISSING, -110_000)]),
        ([*map(row, BILLS), "x,5,5,0.000001\n"], [(What.UNKNOWN, 1_000)]),
        ([*map(row, BILLS), row(BILLS[2])], [(What.TWICE, 112_000)]),
        ([row(BILLS[0], output=99, nanos=199_000), *map(row, BILLS[1:])],
         [(What.TOKENS, 89_000)]),
        ([row(BILLS[0], nanos=110_001), *map(row, BILLS[1:])], [(What.PRICE, 1)]),
        ([row(BILLS[0], output=99), *map(row, BILLS[1:])], [(What.TOKENS, 0)]),
    ],
)  # fmt: skip
def test_each_difference_of_a_request_is_named(
    rows: list[str], differences: list[tuple[What, int]]
) -> None:
    assert found(HEAD + "".join(rows)) == differences


def test_a_line_of_another_tier_is_named() -> None:
    rows = "".join(f"r{n},{'flex' if n == 1 else 'default'},0.00011{n}\n" for n in range(4))
    assert found("request_id,tier,amount_usd\n" + rows) == [(What.TIER, 0)]


def test_lines_that_add_up_days_are_compared_as_such() -> None:
    head = "day,model,requests,output_tokens,amount_usd\n"
    good = head + "2026-03-02,big,2,21,0.000221\n2026-03-03,big,2,25,0.000225\n"
    assert found(good) == []
    assert found(good.replace(",2,21,", ",3,21,")) == [(What.REQUESTS, 0)]
    assert found(good.replace("0.000225", "0.000226")) == [(What.PRICE, 1_000)]
    assert found(good + "2026-03-04,big,1,5,0.1\n") == [(What.UNKNOWN, 100_000_000)]
    assert found(head + "2026-03-02,big,2,21,0.000221\n") == [
        (What.MISSING, -112_000), (What.MISSING, -113_000),
    ]  # fmt: skip


def test_whatever_an_invoice_says_its_differences_add_up() -> None:
    kinds = set()
    for seed in range(300):
        dice = Random(seed)
        lines = [
            row(
                one,
                output=dice.choice([None, dice.randint(0, 50)]),
                nanos=dice.choice([None, dice.randint(0, 10**6)]),
            )
            for one in BILLS
            for _ in range(dice.choice([0, 1, 1, 1, 2]))
        ]
        kinds |= {what for what, _ in found(HEAD + "".join(dice.sample(lines, len(lines))))}
    assert kinds >= {What.MISSING, What.TWICE, What.TOKENS, What.PRICE}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must name columns"),
        ("request_id,price\nr1,2\n", "must name columns"),
        ("model,amount_usd\nbig,2\n", "request_id, or day and model"),
        (HEAD + "r1,1,2,much\n", "line 2: amount_usd"),
        (HEAD + "r1,-1,2,0.1\n", "line 2: input_tokens must be a whole number"),
        ("day,model,amount_usd\n2026-13-01,big,1\n", "line 2"),
        ("day,model,request_id,amount_usd\n,,,1\n", "needs day and model"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_line(text: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        reconcile(read(text), BILLS)
