"""How much a request may use, decided from what its tenant has.

A prompt is counted by the replica only where it matters. Before that there is a bound, which
costs nothing: who is rich enough to have it held needs no exact number, as only what was used
is charged in the end.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.tariff import Tariff
from sublet.ledger.transfer import Account

# Who has so many times what is asked is not asked how long the prompt is exactly, and gets
# money set aside for requests to come.
RICH: Final = 1024


class Clip(StrEnum):
    CONTEXT = "context"  # the model's context holds no more
    WALLET = "wallet"  # the wallet pays for no more


# Structs, which are made three times as fast as frozen dataclasses: each request makes both.


class Need(Struct, kw_only=True, eq=False, gc=False):
    """What a request asks for, before anybody looked at the wallet. Not changed once made."""

    prompt_tokens: int  # at most
    counted: bool  # the replica said so: it is exact
    max_tokens: int | None  # None: as many as possible
    context_left: int  # the most that the context holds after the prompt (a token, if not counted)
    tariff: Tariff
    _most: Money | None = None

    @property
    def most_output(self) -> int:
        if self.max_tokens is None:
            return self.context_left
        return min(self.max_tokens, self.context_left)

    @property
    def most_tokens(self) -> int:
        """The most it can use, prompt and output together."""
        both = self.prompt_tokens + self.most_output
        exact = self.counted or not self.most_output
        return both if exact else min(both, self.context_left + 1)

    @property
    def most(self) -> Money:
        """What that costs."""
        if self._most is None:
            self._most = self.tariff.most(
                prompt_tokens=self.prompt_tokens, output_tokens=self.most_output
            )
        return self._most

    def grant(self, amount: Money) -> "Grant":
        """Return what is granted when there is money for all of it."""
        clipped = self.max_tokens is not None and self.max_tokens > self.context_left
        return Grant(
            prompt_tokens=self.prompt_tokens,
            counted=self.counted,
            most_output=self.most_output,
            max_tokens=self.context_left if clipped else self.max_tokens,
            clipped_by=Clip.CONTEXT if clipped else None,
            amount=amount,
            tariff=self.tariff,
        )


class Grant(Struct, frozen=True, kw_only=True, gc=False):
    """What it may use, all of it paid for."""

    prompt_tokens: int  # at most; exact if it was counted
    counted: bool
    most_output: int  # tokens of output that are paid for
    max_tokens: int | None  # what the replica is told; None: its own limit, or the context's
    clipped_by: Clip | None  # why that is less than was asked for, or than nothing said
    amount: Money  # to hold
    tariff: Tariff

    @classmethod
    def nothing(cls, tariff: Tariff) -> "Grant":
        """What is granted before anybody looked."""
        return cls(
            prompt_tokens=0, counted=False, most_output=0, max_tokens=None, clipped_by=None,
            amount=Money(0), tariff=tariff,
        )  # fmt: skip


class CountFirst(Exception):
    """The wallet may be too small for a bound: come again with an exact count."""


def decide(need: Need, wallet: Account) -> Grant | Failure | CountFirst:
    """Return what `wallet` grants, or the 402 to answer with.

    Asked for a number, the wallet pays for that or refuses; asked for none, it gives what
    it can, at least one token, and the answer says so if the wallet is the limit.
    """
    available, amount = wallet.available, need.most
    if not need.counted:
        return need.grant(amount) if amount.nanos * RICH <= available.nanos else CountFirst()
    if amount.nanos <= available.nanos:
        return need.grant(amount)
    if need.max_tokens is not None:
        return _refusal(need, need.most_output, amount, wallet)
    prompt_tokens = need.prompt_tokens
    affordable = need.tariff.affordable(available, prompt_tokens=prompt_tokens)
    max_tokens = need.context_left if affordable is None else max(1, affordable)
    amount = need.tariff.most(prompt_tokens=prompt_tokens, output_tokens=max_tokens)
    if amount.nanos > available.nanos:
        return _refusal(need, max_tokens, amount, wallet)
    return Grant(
        prompt_tokens=prompt_tokens,
        counted=True,
        most_output=max_tokens,
        max_tokens=max_tokens,
        clipped_by=Clip.WALLET,
        amount=amount,
        tariff=need.tariff,
    )


def _refusal(need: Need, max_tokens: int, amount: Money, wallet: Account) -> Failure:
    made = f" and up to {max_tokens} output tokens" if max_tokens else ""
    asked = f"{need.prompt_tokens} input tokens{made} need {amount}"
    if amount.nanos <= wallet.balance.nanos:
        return Failure(
            Kind.IN_FLIGHT,
            f"{asked}; the wallet has {wallet.balance}, of which {wallet.held} is held by what"
            f" runs now and {wallet.available} is available: retry when some of it has ended",
        )
    affordable = need.tariff.affordable(wallet.balance, prompt_tokens=need.prompt_tokens)
    if affordable:  # at least one token could be paid for
        return Failure(
            Kind.OVER_BUDGET,
            f"{asked}; the wallet has {wallet.balance} in all, {wallet.available} available:"
            f" set max_tokens to {affordable} or less, or add credit",
        )
    return Failure(Kind.UNPAID, f"{asked}; the wallet has {wallet.available} available: add credit")
