"""Many requests share a transaction, and each is answered as if it had been alone."""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from tests.gateway.stage import INPUT, MODEL, OUTPUT, Stage

from sublet.core.clock import SystemClock
from sublet.core.errors import Unavailable
from sublet.core.ids import new_id
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Clip, Grant, Need
from sublet.gateway.lane import Lane, Unsure
from sublet.gateway.spool import Spool
from sublet.gateway.tariff import Counts, Tariff
from sublet.gateway.till import Asked, Bill, Till
from sublet.market import store as market
from sublet.metering.usage import Outcome, Usage
from sublet.tenants.tenant import Tenant, TenantId


class Work:
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def __call__(self, numbers: list[int]) -> list[int | Exception]:
        self.batches.append(numbers)
        self.began.set()
        assert self.free.wait(20)
        return [Unavailable("seven") if number == 7 else 2 * number for number in numbers]


def run(work: Work, go: Callable[[Lane[int, int]], Awaitable[None]], **settings: Any) -> None:
    lane = Lane(work, name="test", **{"wait_seconds": 20.0, "window_seconds": 0.0} | settings)
    try:
        asyncio.run(go(lane))  # type: ignore[arg-type]
    finally:
        work.free.set()
        lane.stop()


def test_what_comes_while_a_batch_is_away_goes_together_and_in_order() -> None:
    work = Work()

    async def go(lane: Lane[int, int]) -> None:
        work.free.clear()
        first = asyncio.create_task(lane.do(1))
        await asyncio.to_thread(work.began.wait, 20)
        others = [asyncio.create_task(lane.do(number)) for number in range(2, 9)]
        await asyncio.sleep(0)
        work.free.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert answers[:6] == [2, 4, 6, 8, 10, 12]
        assert isinstance(answers[6], Unavailable)
        assert answers[7] == 16
        assert await lane.do(9) == 18

    run(work, go, most=5)
    assert work.batches == [[1], [2, 3, 4, 5, 6], [7, 8], [9]]


def test_waiting_ends_and_says_whether_it_was_begun() -> None:
    work = Work()

    async def go(lane: Lane[int, int]) -> None:
        work.free.clear()
        begun = asyncio.create_task(lane.do(1))
        await asyncio.to_thread(work.began.wait, 20)
        with pytest.raises(Unavailable) as waiting:
            await lane.do(2)
        assert not isinstance(waiting.value, Unsure)
        with pytest.raises(Unsure):
            await begun
        work.free.set()
        assert await lane.do(3) == 6

    run(work, go, wait_seconds=0.2)
    assert work.batches == [[1], [3]]


def test_a_bug_in_the_work_is_told_to_all_and_the_lane_goes_on() -> None:
    class Broken(Work):
        def __call__(self, numbers: list[int]) -> list[int | Exception]:
            if 0 in numbers:
                raise ZeroDivisionError
            return super().__call__(numbers)

    async def go(lane: Lane[int, int]) -> None:
        answers = await asyncio.gather(lane.do(0), lane.do(1), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ZeroDivisionError] * 2
        assert await lane.do(2) == 4

    run(Broken(), go)


# ── money ────────────────────────────────────────────────────────────────────────────────


def tariff(stage: Stage) -> Tariff:
    with stage.db.transaction() as tx:
        found = Tariff.of(MODEL, {price.sku: price for price in market.list_prices(tx)})
    assert found is not None
    return found


def need(tariff: Tariff, max_tokens: int | None = 1) -> Need:
    return Need(prompt_tokens=1, max_tokens=max_tokens, context_left=100, tariff=tariff)


def bill(tenant: Tenant, id_: UUID, tariff: Tariff, sequence: int, outputs: int = 1) -> Bill:
    usage = Usage(
        id=id_,
        source="gateway:lane",
        sequence=sequence,
        tenant_id=tenant.id,
        model=MODEL,
        request_id=id_.hex,
        input_tokens=1,
        output_tokens=outputs,
        outcome=Outcome.COMPLETED,
        happened_at=datetime.now(UTC),
    )
    counts = Counts(input_tokens=1, cached_input_tokens=0, output_tokens=outputs)
    return Bill(usage=usage, counts=counts, tariff=tariff)


def test_of_a_hot_tenants_requests_exactly_those_it_can_pay_for_are_granted(
    own_stage: Stage,
) -> None:
    grants, requests = 70, 100
    cost = INPUT + OUTPUT
    (hot, _), (other, _) = own_stage.tenant(grants * cost + 1), own_stage.tenant()
    prices = tariff(own_stage)
    spool = Spool(own_stage.database_url, name="lane", clock=SystemClock())
    spool.start(wait_seconds=5)
    ids = [new_id() for _ in range(2 * requests)]

    async def go() -> None:
        answers = await asyncio.gather(
            *(
                spool.open(id_, hot if number % 2 else other, need(prices))
                for number, id_ in enumerate(ids)
            ),
            return_exceptions=True,
        )
        assert all(isinstance(answer, Grant) for answer in answers[::2])
        asked = answers[1::2]
        assert Counter(map(type, asked)) == {Grant: grants, Failure: requests - grants}
        # In the order in which they came.
        assert [type(one) for one in asked] == [Grant] * grants + [Failure] * (requests - grants)
        refused = asked[-1]
        assert isinstance(refused, Failure) and refused.kind is Kind.IN_FLIGHT
        wallet = own_stage.wallet(hot)
        assert (wallet.debits_pending, wallet.available.nanos) == (grants * cost, 1)
        sequence = itertools.count(1)
        bills = [
            bill(hot if number % 2 else other, id_, prices, next(sequence))
            for number, (id_, answer) in enumerate(zip(ids, answers, strict=True))
            if isinstance(answer, Grant)
        ]
        # Every bill is sent twice, and counts once.
        charged = await asyncio.gather(*(spool.settle(one) for one in [*bills, *bills]))
        assert Counter(one.nanos for one in charged) == {cost: len(bills), 0: len(bills)}

    try:
        asyncio.run(go())
    finally:
        spool.stop()
    assert own_stage.wallet(hot).debits_posted == grants * cost
    assert own_stage.wallet(other).debits_posted == requests * cost
    own_stage.check_books()


def test_a_batch_decides_each_from_what_the_last_one_left(own_stage: Stage) -> None:
    tenant, _ = own_stage.tenant(2 * INPUT + 10 * OUTPUT)
    prices = tariff(own_stage)
    till = Till(own_stage.db, holder="gateway:x:y", clock=SystemClock())
    nobody = replace(tenant, id=TenantId(new_id()))
    first, most, broke, unknown = till.open_many(
        [
            Asked(id=new_id(), tenant=tenant, need=need(prices, 4)),
            Asked(id=new_id(), tenant=tenant, need=need(prices, None)),  # as many as it can
            Asked(id=new_id(), tenant=tenant, need=need(prices, 1)),
            Asked(id=new_id(), tenant=nobody, need=need(prices, 1)),
        ]
    )
    assert isinstance(first, Grant) and isinstance(most, Grant)
    assert (most.max_tokens, most.clipped_by) == (6, Clip.WALLET)
    assert isinstance(broke, Failure) and broke.kind is Kind.IN_FLIGHT
    assert isinstance(unknown, Failure) and "no wallet yet" in str(unknown)


def test_one_bill_with_a_bug_is_told_alone(own_stage: Stage) -> None:
    tenant, _ = own_stage.tenant()
    prices = tariff(own_stage)
    till = Till(own_stage.db, holder="gateway:x:y", clock=SystemClock())
    good, bad = new_id(), new_id()
    opened = till.open_many(
        [Asked(id=id_, tenant=tenant, need=need(prices)) for id_ in (good, bad)]
    )
    assert all(isinstance(answer, Grant) for answer in opened)
    ghost = replace(tenant, id=TenantId(new_id()))
    error, paid = till.settle_many([bill(ghost, bad, prices, 1), bill(tenant, good, prices, 2)])
    assert isinstance(error, Exception)
    assert not isinstance(paid, Exception) and paid.nanos == INPUT + OUTPUT
