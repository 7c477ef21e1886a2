"""A request that may be bought: own replicas first, suppliers when those are short."""

from collections.abc import Awaitable, Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sublet.gateway.answers import Broken, Piece, failed
from sublet.gateway.ask import Ask
from sublet.gateway.bought.call import Cut, Failed, Order, SupplierCall
from sublet.gateway.bound import bound_outside
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.grant import Grant
from sublet.gateway.routing import by_tier
from sublet.gateway.tariff import Counts, Tariff
from sublet.metering.store import price_of
from sublet.suppliers.choice import Sale, Wanted

if TYPE_CHECKING:
    from sublet.gateway.service import Service

_BYTES_A_TOKEN: Final = 4  # of most text in most tokenizers: only to compare prices by
_USUAL_OUTPUT: Final = 256
# A replica refused before it began, so somebody else may be asked.
ELSEWHERE: Final = frozenset({Kind.MODEL_BUSY, Kind.RECLAIMED})


class Outside:
    """One request's way to own replicas or suppliers."""

    def __init__(self, service: "Service", ask: Ask, tenant_id: UUID) -> None:
        self.call: SupplierCall | None = None  # who was asked last
        self._service = service
        self._ask = ask
        self._tenant_id = tenant_id

    async def generate(
        self,
        grant: Grant,
        *,
        request_id: str,
        began_at: float,
        own: Callable[[], Awaitable[None]],
        begun: Callable[[], bool],
        take: Callable[[list[Piece]], Awaitable[None]],
    ) -> None:
        """Ask own replicas; where they are short, buy, or else wait for them all the same.

        Args:
            grant: what it may use.
            request_id: ours.
            began_at: when it began: the first token is waited for from then on.
            own: asks own replicas.
            begun: says whether anything of an answer has come.
            take: takes what comes.

        Raises:
            Failure: nobody is there to ask.
            Broken: who was asked broke off.
        """
        service, ask = self._service, self._ask
        buyer = service.buyer
        assert buyer is not None
        offer = service.table.seen_by(self._tenant_id).find(ask.model)
        ready, scaling = by_tier(offer.ready, ask.service_tier), offer.deployment.scaling
        short = buyer.is_short(
            ask.model, target_tokens=scaling.outstanding_tokens, ready=len(ready)
        )
        failure: Failure | None = None
        if not short:
            try:
                return await self._on_own(grant, own)
            except Broken as error:
                if error.failure.kind not in ELSEWHERE or begun():
                    raise
                failure = error.failure
            except Failure as error:
                failure = error
        deadline = began_at + service.patience.first_token_seconds
        if await self._buy(grant, request_id, deadline, take):
            return None
        self.call = None
        if short and ready:
            return await self._on_own(grant, own)
        raise failure or offer.nobody(ask)

    async def _on_own(self, grant: Grant, own: Callable[[], Awaitable[None]]) -> None:
        buyer = self._service.buyer
        assert buyer is not None
        tokens = grant.prompt_tokens + grant.most_output
        buyer.own[self._ask.model] += tokens
        try:
            await own()
        finally:
            buyer.own[self._ask.model] -= tokens

    async def _buy(
        self,
        grant: Grant,
        request_id: str,
        deadline: float,
        take: Callable[[list[Piece]], Awaitable[None]],
    ) -> bool:
        buyer, ask = self._service.buyer, self._ask
        assert buyer is not None
        order = Order(
            ask=ask,
            tenant_id=self._tenant_id,
            request_id=request_id,
            wanted=Wanted(
                tier=ask.service_tier or "default",
                input_tokens=bound_outside(ask),
                output_tokens=grant.most_output,
                expected_input=max(1, ask.prompt_bytes // _BYTES_A_TOKEN),
                expected_output=min(grant.most_output, _USUAL_OUTPUT),
            ),
            most_output=grant.most_output,
            deadline=deadline,
        )
        try:
            bought = await buyer.buy(order, _sale(grant.tariff), asked=self._asked, take=take)
        except Cut as error:
            raise Broken(failed(ask)) from error
        except Failed as error:
            refused = Failure(Kind.INVALID, f"model {ask.model!r} cannot take this request")
            raise Broken(refused) from error
        return bought is not None

    def _asked(self, call: SupplierCall) -> None:
        self.call = call

    def leave(self) -> None:
        """The client hung up: let the supplier go on to its count."""
        if self.call is not None:
            self.call.leave()

    def cut(self) -> None:
        if self.call is not None:
            self.call.cut()

    def tariff(self, grant: Grant, counts: Counts) -> Tariff:
        """Return the prices of the tier as which a supplier served it, where they are lower."""
        assert self.call is not None
        offer = self._service.table.seen_by(self._tenant_id).offers.get(self._ask.model)
        tier = self.call.tier
        if offer is None or tier == (self._ask.service_tier or "default"):
            return grant.tariff
        served = offer.tariff if tier == "default" else offer.tiers.get(tier)
        if served is None:
            return grant.tariff
        cheaper = price_of(served.lines(counts)).nanos < price_of(grant.tariff.lines(counts)).nanos
        return served if cheaper else grant.tariff


def _sale(tariff: Tariff) -> Sale:
    """Return what our caller pays for a token of each kind."""
    prices = {
        "input": tariff.input, "cache_read": tariff.cache_read, "cache_write": tariff.cache_write,
        "cache_write_long": tariff.cache_write, "output": tariff.output,
        "reasoning": tariff.reasoning,
    }  # fmt: skip
    return Sale(nanos={kind: Fraction(p.rate.nanos, p.rate.per) for kind, p in prices.items()})
