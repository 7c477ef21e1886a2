"""Outside APIs that answers may be bought from: who they are, and what they take.

    Supplier ──1:n── Source ──1:n── Rates        a source stands for one deployment of ours
        └── project ──1:n── limits (quota.py)

Prices have versions: a purchase keeps the one that held when it was asked for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from typing import Final
from urllib.parse import urlsplit

from sublet.core.errors import Invalid
from sublet.core.money import Money, Rate
from sublet.suppliers.usage import KINDS, Used

DEFAULT: Final = "default"
TIERS: Final = (DEFAULT, "priority", "flex", "batch")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Dialect(StrEnum):
    OPENAI = "openai"  # chat completions, by whoever speaks them
    XAI = "xai"  # the same, but for how it counts
    ANTHROPIC = "anthropic"  # Messages
    GEMINI = "gemini"  # streamGenerateContent
    BEDROCK = "bedrock"  # ConverseStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a supplier takes for `per` tokens of each kind, in nanos. A row of the record."""

    id: int
    tier: str
    nanos: Mapping[str, int]  # by kind: see usage.KINDS
    per: int
    happened_at: datetime

    def cost(self, used: Used) -> Money:
        """Return what was used costs: each kind rounded half to even to a nano, as it is billed."""
        return Money(
            sum(
                Rate(nanos=self.nanos[kind], per=self.per).charge_nanos(quantity)
                for kind, quantity in used.quantities()
                if quantity
            )
        )

    def most(self, *, input_tokens: int, output_tokens: int) -> Money:
        """Return what so many tokens can cost at most, of whatever kinds they turn out to be."""
        both = ((self.dearest(INPUTS), input_tokens), (self.dearest(OUTPUTS), output_tokens))
        # Each kind is rounded by itself, by up to half a nano.
        return Money(sum(-(-nanos * tokens // self.per) for nanos, tokens in both) + len(KINDS))

    def dearest(self, kinds: tuple[str, ...]) -> int:
        return max(self.nanos[kind] for kind in kinds)

    def each(self, kind: str) -> Fraction:
        """Return what one token costs, in nanos."""
        return Fraction(self.nanos[kind], self.per)


INPUTS: Final = ("input", "cache_read", "cache_write", "cache_write_long")
OUTPUTS: Final = ("output", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Supplier:
    name: str
    dialect: Dialect
    url: str  # what paths are added to, without a slash at its end
    project: str  # whose quota it shares
    enabled: bool = True
    first_token_ms: int = 10_000  # longer than that, and the next one is asked
    has_key: bool = False

    def __post_init__(self) -> None:
        check_url(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model of a supplier that answers for one of our deployments."""

    supplier: Supplier
    model: str  # as the supplier calls it
    deployment: str
    rates: Mapping[str, Rates] = field(default_factory=dict)  # by tier: what holds now

    @property
    def key(self) -> tuple[str, str]:
        return self.supplier.name, self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Under which terms answers of a deployment are bought."""

    enabled: bool = True
    margin: Fraction = Fraction(0)  # share of the price that must be left
    loss_nanos: int = 0  # that may be lost a day


def check_url(url: str) -> None:
    """Raises Invalid: it is no address, or one to which a key must not be sent in the clear."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host, parts = None, None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
        raise Invalid(f"url: {url[:200]!r} is no address such as https://api.example.com/v1")
    if parts.username is not None or url.endswith("/") or not url.isascii() or port == 0:
        raise Invalid("url: give it without a user, and without a slash at its end")
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise Invalid(f"url: {url[:200]!r} would send the key in the clear: use https")


def kinds_of(rates: Rates) -> Iterator[tuple[str, int]]:
    for kind in KINDS:
        yield kind, rates.nanos[kind]
