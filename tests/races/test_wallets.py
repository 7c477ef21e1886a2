"""A thousand requests at once, three gateways, one wallet, and a kill -9 in the middle."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
from tests.gateway.stage import MODEL, Stage, eventually, says
from tests.races.fleet import Fleet, check_everything, fleet

from sublet.core.money import Rate
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku

NAMES = ("one", "two", "three")
CENTS = 10_000_000  # in nanos
EACH = 10 * CENTS  # what every request costs: an input token for 2 cents, 8 of output for 1
WORTH = 50  # so many the wallet pays for
AT_FIRST = 10  # to the one that is killed
REQUESTS, AFTER = 800, 200  # with one killed in the middle; while it comes back


@dataclass(slots=True)
class Clients:
    """Sends requests, round the gateways, and counts what came back."""

    fleet: Fleet
    session: aiohttp.ClientSession
    answers: Counter[str] = field(default_factory=Counter)
    paid: set[str] = field(default_factory=set)  # the requests whose answer arrived whole

    async def ask(self, number: int, *, first_ms: int = 200) -> None:
        url = self.fleet.gateways[NAMES[number % 3]].url
        body = {
            "model": MODEL,
            # Some are long done when others have hardly begun.
            "messages": says(tokens=8, first_ms=first_ms + number % 8 * 200, delay_ms=2),
            "max_tokens": 8,
        }
        if number % 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with self.session.post(f"{url}/v1/chat/completions", json=body) as response:
                text = await response.text()
        except aiohttp.ClientError:
            self.answers["broken"] += 1
            return
        self.answers[str(response.status)] += 1
        assert response.status in (200, 402, 503), text
        if response.status == 200:
            assert f'"charge_nanos":{EACH}' in text
            self.paid.add(response.headers["x-request-id"])

    async def ask_many(self, numbers: range) -> None:
        async with asyncio.TaskGroup() as group:
            for number in numbers:
                group.create_task(self.ask(number))


@asynccontextmanager
async def clients(fleet: Fleet, key: str) -> AsyncIterator[Clients]:
    headers = {"authorization": f"Bearer {key}"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(
        headers=headers, connector=connector, timeout=timeout
    ) as session:
        yield Clients(fleet, session)


async def until(what: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, what, seconds=90)


def set_prices(stage: Stage) -> None:
    with stage.db.transaction() as tx:
        now = datetime.now(UTC)
        market.set_price(tx, input_sku(MODEL), Rate(nanos=2 * CENTS, per=1), now=now)
        market.set_price(tx, output_sku(MODEL), Rate(nanos=CENTS, per=1), now=now)


def test_a_wallet_worth_fifty_serves_fifty_whoever_dies(own_stage: Stage) -> None:
    stage = own_stage
    set_prices(stage)
    tenant, key = stage.tenant(WORTH * EACH)
    killed = NAMES[1]

    async def story(gateways: Fleet) -> Clients:
        async with clients(gateways, key) as crowd:
            async with asyncio.TaskGroup() as group:
                # Whoever's transaction comes first may take all that the wallet has: one that has
                # something to lose is the one that is killed.
                for number in range(1, 3 * AT_FIRST, 3):
                    group.create_task(crowd.ask(number, first_ms=3000))
                await until(lambda: gateways.holds(killed) > 0)
                group.create_task(crowd.ask_many(range(REQUESTS - AT_FIRST)))
                await until(lambda: len(crowd.paid) >= 5 and gateways.holds(killed) > 0)
                await asyncio.to_thread(gateways.kill, killed)

            # What the dead one had in flight is held still; all of the rest was sold.
            await until(lambda: stage.open_holds() == gateways.holds(killed) == 1)
            wallet = stage.wallet(tenant)
            lost, rest = divmod(wallet.debits_pending, EACH)
            assert 0 < lost <= WORTH
            assert not rest
            assert wallet.debits_posted == (WORTH - lost) * EACH
            assert wallet.available.nanos == 0

            # It returns under its name, in the middle of it all, and its money with it.
            async with asyncio.TaskGroup() as group:
                group.create_task(crowd.ask_many(range(REQUESTS, REQUESTS + AFTER)))
                await asyncio.to_thread(gateways.start, killed)
            assert sum(crowd.answers.values()) == REQUESTS + AFTER
            # A client that goes on asking gets all that the wallet pays for.
            asked = 0
            while stage.wallet(tenant).balance.nanos:
                assert asked < 3 * WORTH
                await crowd.ask(asked)
                asked += 1
            return crowd

    with fleet(stage, *NAMES) as gateways:
        crowd = asyncio.run(story(gateways))
        check_everything(stage)
        wallet = stage.wallet(tenant)
        assert (wallet.balance.nanos, wallet.held.nanos) == (0, 0)
        charged = {usage["request_id"] for usage in stage.usages(tenant)}
        assert len(charged) == WORTH
        # Everybody who got an answer paid for it. Who paid and got none was cut off by the
        # kill, between the charge and the last bytes.
        assert crowd.paid <= charged
        assert len(charged - crowd.paid) <= crowd.answers["broken"]
        assert crowd.answers["402"] > 0
        print(dict(crowd.answers), "paid:", len(crowd.paid))
