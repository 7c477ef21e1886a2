"""What a model's tokens cost: three counters that add up, and a price for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from sublet.core.money import Money
from sublet.market.price import Price, cached_input_sku, input_sku, output_sku
from sublet.metering.store import most_of
from sublet.metering.usage import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Tokens of one request, as the engine counted them. Disjoint: they add up."""

    input_tokens: int  # worked on
    cached_input_tokens: int  # their work was kept from an earlier request
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        """OpenAI's word, which includes the cached ones."""
        return self.input_tokens + self.cached_input_tokens

    def at_most(self, *, prompt_tokens: int, output_tokens: int) -> Self:
        """Cut down to what was held. A replica that counts more than it may is not believed."""
        cached = min(self.cached_input_tokens, prompt_tokens)
        return type(self)(
            input_tokens=min(self.input_tokens, prompt_tokens - cached),
            cached_input_tokens=cached,
            output_tokens=min(self.output_tokens, output_tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """A model's prices. A request keeps the one it was held at, whatever changes meanwhile."""

    input: Price
    cached_input: Price
    output: Price

    @classmethod
    def of(cls, model: str, prices: Mapping[str, Price]) -> Self | None:
        """Return the model's tariff; None when a price is missing, and nothing may be sold."""
        input_, output = prices.get(input_sku(model)), prices.get(output_sku(model))
        if input_ is None or output is None:
            return None
        cached = prices.get(cached_input_sku(model), input_)
        return cls(input=input_, cached_input=cached, output=output)

    def lines(self, counts: Counts) -> list[Line]:
        """Return what to charge: one line a price, and none for nothing."""
        quantities: dict[int, Line] = {}
        for price, quantity in (
            (self.input, counts.input_tokens),
            (self.cached_input, counts.cached_input_tokens),
            (self.output, counts.output_tokens),
        ):
            before = quantities.get(price.id)
            total = quantity + (0 if before is None else before.quantity)
            if total:
                quantities[price.id] = Line(price=price, quantity=total)
        return list(quantities.values())

    def most(self, *, prompt_tokens: int, output_tokens: int) -> Money:
        """Return what to hold: no split of the prompt into cached and not can cost more."""
        dearest = max(self.input, self.cached_input, key=_per_token)
        most = most_of(
            [
                Line(price=dearest, quantity=prompt_tokens),
                Line(price=self.output, quantity=output_tokens),
            ]
        )
        # Two lines are rounded apart, each by up to half a nano; whole nanos need no rounding.
        whole = all(
            price.rate.nanos % price.rate.per == 0 for price in (self.input, self.cached_input)
        )
        # A hold of nothing is no hold: even a free model takes one nano, and gives it back.
        return Money(max(1, most.nanos + (0 if whole else 1)))

    def affordable(self, available: Money, *, prompt_tokens: int) -> int | None:
        """Return how many output tokens `available` pays for after the prompt; None: any."""
        left = available.nanos - self.most(prompt_tokens=prompt_tokens, output_tokens=0).nanos
        if left < 0:
            return 0
        rate = self.output.rate
        return None if rate.nanos == 0 else left * rate.per // rate.nanos


def _per_token(price: Price) -> Fraction:
    return Fraction(price.rate.nanos, price.rate.per)
