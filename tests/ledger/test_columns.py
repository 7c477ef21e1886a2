"""Money on columns is the same money: rates, holds and posts as the ledger does them."""

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.db import Tx
from sublet.core.errors import Invalid, Unpaid
from sublet.core.money import Money, Rate
from sublet.ledger import store
from sublet.ledger.columns import Book, charge_each, charge_most_each, take_in_turn
from sublet.ledger.transfer import Transfer

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUANTITY = st.integers(0, 10**7)
RATE = st.integers(0, 10**11)


def column(*values: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(values, dtype=np.int64)


@given(st.lists(st.tuples(RATE, QUANTITY), max_size=20), st.sampled_from([1, 7, 3_600]))
def test_a_column_of_charges_is_each_charge(rows: list[tuple[int, int]], per: int) -> None:
    nanos, quantity = column(*(n for n, _ in rows)), column(*(q for _, q in rows))
    each = [Rate(nanos=n, per=per) for n, _ in rows]
    assert charge_each(nanos, per, quantity).tolist() == [
        rate.charge(q).nanos for rate, (_, q) in zip(each, rows, strict=True)
    ]
    assert charge_most_each(nanos, per, quantity).tolist() == [
        rate.charge_most(q).nanos for rate, (_, q) in zip(each, rows, strict=True)
    ]


def test_what_no_column_can_hold_is_refused() -> None:
    with pytest.raises(Invalid, match="more than a column"):
        charge_each(column(10**12), 1, column(10**12))
    with pytest.raises(Invalid, match="less than nothing"):
        charge_each(column(1), 1, column(-1))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=30),
    st.tuples(*[st.integers(0, 120)] * 3),
)
def test_amounts_are_taken_in_turn_as_one_by_one(
    asked: list[tuple[int, int]], limits: tuple[int, int, int]
) -> None:
    left, expected = list(limits), []
    for group, amount in asked:
        fits = amount <= left[group]
        expected.append(fits)
        left[group] -= amount if fits else 0
    taken = take_in_turn(
        column(*(g for g, _ in asked)), column(*(a for _, a in asked)), column(*limits)
    )
    assert taken.tolist() == expected


def test_a_book_counts_as_the_ledger_does(tx: Tx) -> None:
    """The same holds, posts and settlements, refused ones among them, leave the same counters."""
    dice = Random(5)
    codes = ["house:bank", "tenant:a:wallet", "tenant:b:wallet", "tenant:a:revenue"]
    prepaid = ["wallet" in code for code in codes]
    accounts = [
        store.open_account(tx, code, prepaid=one) for code, one in zip(codes, prepaid, strict=True)
    ]
    book = Book(np.array(prepaid))
    open_holds: list[tuple[UUID, int, int, int]] = []
    refused = 0
    for number in range(120):
        payer, payee = dice.choice([(0, 1), (0, 2), (1, 3), (1, 3), (2, 3), (2, 3), (3, 1)])
        amount = dice.randint(1, 1_000)
        transfer = Transfer(
            id=UUID(int=number + 1), debit_account=accounts[payer].id,
            credit_account=accounts[payee].id, amount=Money(amount), reason="t", happened_at=NOON,
        )  # fmt: skip
        row = (column(payer), column(payee), column(amount))
        what = dice.choice(["post", "hold", "settle"])
        if what == "settle" and open_holds:
            hold, by, to, held = open_holds.pop(dice.randrange(len(open_holds)))
            used = dice.choice([0, held, dice.randint(0, held)])
            store.settle(tx, hold, Money(used), happened_at=NOON, now=NOON)
            book.settle(column(by), column(to), column(held), column(used))
            continue
        try:
            with tx.transaction():
                if what == "post":
                    store.post(tx, transfer, now=NOON)
                else:
                    store.hold(
                        tx, transfer, holder="t", expires_at=NOON + timedelta(days=1), now=NOON
                    )
        except Unpaid:
            refused += 1
            assert not book.payable(row[0], row[2])[0]
            with pytest.raises(Unpaid):
                book.post(*row) if what == "post" else book.hold(*row)
            continue
        if what == "post":
            book.post(*row)
        else:
            assert book.payable(row[0], row[2])[0]
            book.hold(*row)
            open_holds.append((transfer.id, payer, payee, amount))
    assert refused > 5
    for place, code in enumerate(codes):
        real = store.get_account(tx, code)
        assert (
            real.debits_pending, real.debits_posted, real.credits_pending, real.credits_posted
        ) == (
            book.debits_pending[place], book.debits_posted[place],
            book.credits_pending[place], book.credits_posted[place],
        )  # fmt: skip
        assert real.available.nanos == book.available_of(place) == book.available[place]
    assert book.imbalance() == (0, 0) and not len(book.overdrawn())


def test_a_hold_is_settled_for_what_was_held_at_most() -> None:
    book = Book(np.array([False, True]))
    with pytest.raises(Invalid, match="at most"):
        book.settle(column(0), column(1), column(5), column(6))
    assert book.imbalance() == (0, 0)


def test_money_from_nowhere_and_overdrafts_are_seen() -> None:
    book = Book(np.array([False, True]))
    book.debits_posted[1] += 3
    assert book.imbalance() == (0, 3)
    assert book.overdrawn().tolist() == [1]
