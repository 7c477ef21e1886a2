"""How much a request may use, decided from the wallet as it stands under its lock."""

from dataclasses import dataclass
from enum import StrEnum

from sublet.core.money import Money
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.tariff import Tariff
from sublet.ledger.transfer import Account


class Clip(StrEnum):
    CONTEXT = "context"  # the model's context holds no more
    WALLET = "wallet"  # the wallet pays for no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request asks for, before anybody looked at the wallet."""

    prompt_tokens: int  # exact: the replica counted
    max_tokens: int | None  # None: as many as possible
    context_left: int  # what the context holds after the prompt, at least 1
    tariff: Tariff

    @property
    def most_tokens(self) -> int:
        """The most it can use, prompt and output together."""
        wanted = self.context_left if self.max_tokens is None else self.max_tokens
        return self.prompt_tokens + min(wanted, self.context_left)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What it may use, all of it paid for."""

    prompt_tokens: int
    max_tokens: int  # of output
    clipped_by: Clip | None  # why it is less than was asked for, or than nothing said
    amount: Money  # to hold
    tariff: Tariff


def decide(need: Need, wallet: Account) -> Grant | Failure:
    """Return what `wallet` grants, or the 402 to answer with.

    Asked for a number, the wallet pays for that or refuses; asked for none, it gives what
    it can, at least one token, and the answer says which of the two limits it was.
    """
    tariff, prompt_tokens = need.tariff, need.prompt_tokens
    clipped_by = None
    if need.max_tokens is None or need.max_tokens > need.context_left:
        max_tokens, clipped_by = need.context_left, Clip.CONTEXT
    else:
        max_tokens = need.max_tokens
    affordable = tariff.affordable(wallet.available, prompt_tokens=prompt_tokens)
    if affordable is not None and affordable < max_tokens and need.max_tokens is None:
        max_tokens, clipped_by = max(1, affordable), Clip.WALLET
    amount = tariff.most(prompt_tokens=prompt_tokens, output_tokens=max_tokens)
    if amount.nanos > wallet.available.nanos:
        return _refusal(need, max_tokens, amount, wallet)
    return Grant(
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        clipped_by=clipped_by,
        amount=amount,
        tariff=tariff,
    )


def _refusal(need: Need, max_tokens: int, amount: Money, wallet: Account) -> Failure:
    asked = f"{need.prompt_tokens} input tokens and up to {max_tokens} output tokens need {amount}"
    if amount.nanos <= wallet.balance.nanos:
        return Failure(
            Kind.IN_FLIGHT,
            f"{asked}; the wallet has {wallet.balance}, of which {wallet.held} is held by what"
            f" runs now and {wallet.available} is available: retry when some of it has ended",
        )
    affordable = need.tariff.affordable(wallet.balance, prompt_tokens=need.prompt_tokens)
    advice = "add credit"
    if affordable:  # at least one token could be paid for
        advice = f"set max_tokens to {affordable} or less, or add credit"
    return Failure(Kind.UNPAID, f"{asked}; the wallet has {wallet.available} available: {advice}")
