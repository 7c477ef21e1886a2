"""What can be reserved, and what cannot."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from tests.core.databases import fresh
from tests.simulation.shop import GPU_HOUR, HOUR, MINUTE, NOON, SECOND, World

from sublet.core.db import Database
from sublet.core.errors import Invalid, NotFound, Refused, SubletError, Unpaid
from sublet.core.money import Money, Rate
from sublet.fleet.pool import Policy, Pool, parse_quiet
from sublet.leases import reservations
from sublet.leases.reservation import broken_credit, check_window
from sublet.ledger import store as ledger


@pytest.fixture(scope="module")
def shared(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"starts_at": NOON - MINUTE}, Invalid, "in the past"),
        ({"ends_at": NOON + HOUR}, Invalid, "before it starts"),
        ({"ends_at": NOON}, Invalid, "before it starts"),
        ({"starts_at": NOON + timedelta(microseconds=1)}, Invalid, "whole second"),
        ({"ends_at": NOON + timedelta(days=40)}, Invalid, "at most 31 days"),
        (
            {"starts_at": NOON + timedelta(days=400), "ends_at": NOON + timedelta(days=401)},
            Invalid, "within 366 days",
        ),
        ({"gpus": 0}, Invalid, "at least 1"),
        ({"gpus": 9}, Invalid, "has 8 GPUs"),
        ({"pool": "b200"}, NotFound, "no pool"),
        ({"notice": 9 * SECOND}, Invalid, "notices of 10 to 10 seconds"),
        ({"quote": UUID(int=3)}, NotFound, "no quote"),
        ({"ends_at": NOON + timedelta(days=20)}, Refused, "beyond the next day"),
    ],
)  # fmt: skip
def test_a_window_that_cannot_be_is_refused_and_leaves_nothing(
    shared: Database, changes: dict[str, Any], error: type[SubletError], match: str
) -> None:
    world = World(shared)
    with pytest.raises(error, match=match):
        world.book(**changes)
    assert world.wallet(world.acme) == (0, 0)
    with shared.transaction() as tx:
        assert reservations.list_of(tx, world.acme.id, limit=9) == []


def test_a_wallet_that_cannot_pay_for_all_of_it_books_nothing(shared: Database) -> None:
    world = World(shared)
    poor = world.new_tenant(8 * GPU_HOUR - 1)
    with pytest.raises(Unpaid):
        world.book(poor)
    with shared.transaction() as tx:
        assert ledger.get_account(tx, poor.wallet).held == Money(0)


@pytest.mark.parametrize(
    ("policy_", "match"),
    [
        (Policy(notice_seconds=10, lendable=False), "sells nothing"),
        (Policy(notice_seconds=10, quiet=parse_quiet("13:30-13:31")), "quiet hours"),
    ],
)
def test_a_pool_sells_no_window_against_its_policy(policy_: Policy, match: str) -> None:
    pool = Pool(name="h200", gpus=8, policy=policy_)
    with pytest.raises(Refused, match=match):
        check_window(pool, NOON + HOUR, NOON + 2 * HOUR, gpus=1, now=NOON)


@pytest.mark.parametrize(("percent", "credited"), [(0, 0), (50, 30), (100, 60), (900, 60)])
def test_a_broken_window_is_credited_as_agreed_and_at_most_with_what_was_left(
    percent: int, credited: int
) -> None:
    credit = broken_credit(
        Rate(nanos=1, per=1), gpus=1, percent=percent, broken_at=NOON, until=NOON + MINUTE
    )
    assert credit == Money(credited)
