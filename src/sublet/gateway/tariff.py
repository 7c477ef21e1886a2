"""What a model's tokens cost: five counters that add up, and a price for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Self

from msgspec import Meta, Struct

from sublet.core.money import Money, Rate
from sublet.market.price import (
    Price,
    cache_read_sku,
    cache_write_sku,
    input_sku,
    output_sku,
    reasoning_sku,
)
from sublet.metering.usage import Line

_Count = Annotated[int, Meta(ge=0, le=2**53)]


class Counts(Struct, frozen=True, kw_only=True):
    """Tokens of one request, as the engine counted them. Disjoint: they add up.

    Read as they are out of every event of a stream, so decoding them must cost nothing.
    """

    input_tokens: _Count  # worked on, and not kept
    cache_read_tokens: _Count  # their work was kept from an earlier request
    cache_write_tokens: _Count = 0  # worked on, and kept because the caller asked
    output_tokens: _Count  # of the answer
    reasoning_tokens: _Count = 0  # of what came before the answer

    @property
    def prompt_tokens(self) -> int:
        """OpenAI's word, which includes the cached ones."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def completion_tokens(self) -> int:
        """OpenAI's word, which includes the reasoning."""
        return self.output_tokens + self.reasoning_tokens

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def at_most(self, *, prompt_tokens: int, output_tokens: int) -> Self:
        """Cut down to what was held. A replica that counts more than it may is not believed."""
        if self.prompt_tokens <= prompt_tokens and self.completion_tokens <= output_tokens:
            return self
        read = min(self.cache_read_tokens, prompt_tokens)
        write = min(self.cache_write_tokens, prompt_tokens - read)
        output = min(self.output_tokens, output_tokens)
        return type(self)(
            input_tokens=min(self.input_tokens, prompt_tokens - read - write),
            cache_read_tokens=read,
            cache_write_tokens=write,
            output_tokens=output,
            reasoning_tokens=min(self.reasoning_tokens, output_tokens - output),
        )


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """A model's prices. A request keeps the one it was held at, whatever changes meanwhile."""

    input: Price
    cache_read: Price
    cache_write: Price
    output: Price
    reasoning: Price

    @classmethod
    def of(cls, model: str, prices: Mapping[str, Price]) -> Self | None:
        """Return the model's tariff; None when a price is missing, and nothing may be sold.

        Cached input without a price of its own is input, and reasoning is output.
        """
        input_, output = prices.get(input_sku(model)), prices.get(output_sku(model))
        if input_ is None or output is None:
            return None
        return cls(
            input=input_,
            cache_read=prices.get(cache_read_sku(model), input_),
            cache_write=prices.get(cache_write_sku(model), input_),
            output=output,
            reasoning=prices.get(reasoning_sku(model), output),
        )

    def lines(self, counts: Counts) -> list[Line]:
        """Return what to charge: one line a price, and none for nothing."""
        quantities: dict[int, Line] = {}
        for price, quantity in (
            (self.input, counts.input_tokens),
            (self.cache_read, counts.cache_read_tokens),
            (self.cache_write, counts.cache_write_tokens),
            (self.output, counts.output_tokens),
            (self.reasoning, counts.reasoning_tokens),
        ):
            if quantity:
                before = quantities.get(price.id)
                total = quantity + (0 if before is None else before.quantity)
                quantities[price.id] = Line(price=price, quantity=total)
        return list(quantities.values())

    def most(self, *, prompt_tokens: int, output_tokens: int) -> Money:
        """Return what to hold: no split of these tokens over the counters can cost more."""
        input_, output = self._dearest
        nanos = input_.charge_most_nanos(prompt_tokens) + output.charge_most_nanos(output_tokens)
        # A hold of nothing is no hold: even a free model takes one nano, and gives it back.
        return Money(max(1, nanos + self._rounding))

    def affordable(self, available: Money, *, prompt_tokens: int) -> int | None:
        """Return how many output tokens `available` pays for after the prompt; None: any."""
        left = available.nanos - self.most(prompt_tokens=prompt_tokens, output_tokens=0).nanos
        if left < 0:
            return 0
        _, rate = self._dearest
        return None if rate.nanos == 0 else left * rate.per // rate.nanos

    @cached_property
    def _dearest(self) -> tuple[Rate, Rate]:
        """What a token of input, and one of output, costs at most."""
        inputs, outputs = (
            (self.input, self.cache_read, self.cache_write),
            (self.output, self.reasoning),
        )
        return max(inputs, key=_per_token).rate, max(outputs, key=_per_token).rate

    @cached_property
    def _rounding(self) -> int:
        """How many nanos more than two lines, rounded up, the charge's lines can come to.

        Lines are rounded apart, each by up to half a nano; whole nanos need no rounding.
        """
        broken = {
            price.id
            for price in (
                self.input,
                self.cache_read,
                self.cache_write,
                self.output,
                self.reasoning,
            )
            if price.rate.nanos % price.rate.per
        }
        return max(0, (len(broken) + 1) // 2)


def _per_token(price: Price) -> Fraction:
    return Fraction(price.rate.nanos, price.rate.per)
