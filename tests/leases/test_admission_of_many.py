"""Many who are decided together get what they would get one after the other."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest
from tests.core.databases import fresh

from sublet.app import bootstrap
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound, Refused, SubletError, Unpaid
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import quoting, service, store
from sublet.leases.admission import Asked, admit, admit_many
from sublet.leases.lease import Lease, LeaseId
from sublet.leases.quoting import Ask
from sublet.leases.service import Request
from sublet.leases.store import Spec
from sublet.ledger import store as ledger
from sublet.market import scales
from sublet.market import store as market
from sublet.market.notice import Step
from sublet.market.price import Tier
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CENT = 10_000_000
NOTICES = [timedelta(seconds=60), timedelta(minutes=10), HOUR]  # each has its price
POOLS = {"h200": 24, "b200": 10}
JOBS = [InternalJob(id=new_id(), name="train", gpu_model="b200", gpus=2, submitted_at=NOON)]


@pytest.fixture(scope="module")
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        with database.transaction() as tx:
            fleet.observe_pools(tx, POOLS, notice_seconds=3600, now=NOON)
            bootstrap.first_prices(tx, list(POOLS), now=NOON)
            write_down_prices(tx)
        yield database


def write_down_prices(tx: Tx) -> None:
    """Sell at none of them for the first time, so that each has the same number in each try."""
    anybody = tenant_with(tx, 1)
    for pool in fleet.list_pools(tx):
        for tier in (Tier.INTERRUPTIBLE, Tier.ON_DEMAND):
            for notice in NOTICES:
                service.prices_of(tx, pool, tier, notice=notice, tenant=anybody, now=NOON)


def tenant_with(tx: Tx, cents: int) -> Tenant:
    tenant = tenants.create_tenant(tx, f"acme {new_id()}", now=NOON)
    bootstrap.open_accounts(tx, tenant)
    bootstrap.top_up(tx, tenant, Money(cents * CENT), payment=1, now=NOON)
    return tenant


def crowd(tx: Tx, dice: Random) -> list[Asked]:
    """Return who asks: of two pools, rich and poor, again, by quote, and for what cannot be."""
    shoppers = [tenant_with(tx, cents) for cents in (8, 25, 1000)]
    ask = Ask(pool="h200", gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=HOUR)
    quote = quoting.quote(tx, shoppers[2], ask, jobs=[], lifetime=HOUR, now=NOON)
    asked: list[Asked] = []
    for _ in range(30):
        request = Request(
            id=LeaseId(UUID(int=dice.getrandbits(128), version=4)),
            pool=dice.choice([*POOLS, *POOLS, "c300"]), gpus=dice.choice([0, 1, 1, 2, 4, 30]),
            tier=dice.choice([Tier.INTERRUPTIBLE, Tier.ON_DEMAND, Tier.RESERVED]),
            max_duration=dice.choice([HOUR, 24 * HOUR]), spec=Spec(command=["x"]),
            notice=dice.choice([None, *NOTICES, 2 * HOUR]),
        )  # fmt: skip
        one = Asked(tenant=dice.choice(shoppers), request=request)
        match dice.randrange(8):
            case 0 if asked:  # the same, or the same id for something else
                before = dice.choice(asked)
                changed = replace(before.request, gpus=dice.choice([before.request.gpus, 2]))
                one = replace(before, request=changed)
            case 1:
                terms = replace(request, pool="h200", gpus=1, tier=ask.tier, max_duration=HOUR)
                quoted = replace(terms, quote=quote.id)
                one = Asked(tenant=dice.choice(shoppers[1:]), request=quoted)
        asked.append(one)
    return asked


def one_by_one(tx: Tx, asked: list[Asked]) -> list[Lease | SubletError]:
    outcomes: list[Lease | SubletError] = []
    for one in asked:
        try:
            outcomes.append(admit(tx, one.tenant, one.request, jobs=JOBS, now=NOON))
        except SubletError as error:
            outcomes.append(error)
    return outcomes


def described(tx: Tx, asked: list[Asked], outcomes: list[Lease | SubletError]) -> object:
    """Return what came of each, and what is on the books after it."""
    said = [one if isinstance(one, Lease) else (type(one), str(one)) for one in outcomes]
    wallets = {one.tenant.wallet for one in asked}
    held = {wallet: ledger.get_account(tx, wallet).held for wallet in wallets}
    stands = store.standings(tx, dict.fromkeys(POOLS, NOON), now=NOON)
    specs = [store.get_spec(tx, one.id) for one in outcomes if isinstance(one, Lease)]
    return said, held, stands, specs


def test_together_is_as_one_after_the_other(db: Database) -> None:
    seen: set[object] = set()
    for seed in range(12):
        with db.transaction() as tx, tx.transaction(force_rollback=True):
            asked = crowd(tx, Random(seed))
            with tx.transaction(force_rollback=True):
                apart = one_by_one(tx, asked)
                expected = described(tx, asked, apart)
            with tx.transaction(force_rollback=True):
                together = admit_many(tx, asked, jobs=JOBS, now=NOON)
                assert described(tx, asked, together) == expected, seed
            seen |= {type(one) for one in together}
    assert seen == {Lease, Invalid, NotFound, Refused, Unpaid}


def test_nobody_who_is_refused_takes_anything_from_those_behind(db: Database) -> None:
    with db.transaction() as tx, tx.transaction(force_rollback=True):
        poor, rich = tenant_with(tx, 1), tenant_with(tx, 1000)
        request = Request(
            pool="b200", gpus=8, tier=Tier.INTERRUPTIBLE, max_duration=HOUR,
            spec=Spec(command=["x"]),
        )  # fmt: skip
        asked = [Asked(tenant=one, request=request) for one in (poor, rich, rich)]
        first, second, third = admit_many(tx, asked, jobs=JOBS, now=NOON)
        assert isinstance(first, Unpaid)
        assert isinstance(second, Lease)
        assert isinstance(third, Refused)


def test_each_pays_for_its_notice_also_at_a_price_that_is_new(db: Database) -> None:
    with db.transaction() as tx, tx.transaction(force_rollback=True):
        steps = [Step(notice=timedelta(minutes=10), percent=110), Step(notice=HOUR, percent=150)]
        scales.set_scale(tx, "h200", steps, now=NOON)
        rich = tenant_with(tx, 1000)
        request = Request(
            pool="h200", gpus=1, tier=Tier.INTERRUPTIBLE, max_duration=HOUR,
            spec=Spec(command=["x"]),
        )  # fmt: skip
        asked = [
            Asked(tenant=rich, request=replace(request, notice=notice)) for notice in NOTICES * 2
        ]
        sold = admit_many(tx, asked, jobs=JOBS, now=NOON)
        prices = [market.get_price(tx, one.price_id) for one in sold if isinstance(one, Lease)]
        book, longer, longest = (price.rate.charge(3600 * 100).nanos for price in prices[:3])
        assert (longer, longest) == (book * 110 // 100, book * 150 // 100)
        assert prices[3:] == prices[:3]
