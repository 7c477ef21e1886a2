"""What a thing costs: a SKU, and the rate it is sold at from an instant on."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fractions import Fraction
from uuid import UUID

from sublet.core.money import Rate


class Tier(StrEnum):
    INTERRUPTIBLE = "interruptible"  # from what is idle now; first to give way
    ON_DEMAND = "on_demand"  # firm for a while, as the plan allows, and then interruptible
    RESERVED = "reserved"  # in a window that is paid, used or not
    CONTRACT = "contract"  # of a contract, which is reserved for months or years

    @property
    def drawn(self) -> bool:
        """Say whether its leases are drawn on something that pays for them."""
        return self in {Tier.RESERVED, Tier.CONTRACT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One row of the price book. Never changed: a new price is a new row."""

    id: int
    sku: str
    rate: Rate
    happened_at: datetime  # valid from then, until the next row of its SKU
    tenant_id: UUID | None = None  # whose rate it is; None: the list price
    valid_until: datetime | None = None  # only of a tenant's rate; None: until the next row
    base_id: int | None = (
        None  # the price that it follows from, by the notice; None: it stands alone
    )


def least_rate(*, floor: Rate | None, bid: Rate | None) -> Rate | None:
    """Return the least that something may be sold for now; None: anything.

    Args:
        floor: of the pool's policy; nothing is sold below it.
        bid: what its capacity is worth to who may come later; None: not known.
    """
    return max(
        (rate for rate in (floor, bid) if rate is not None),
        key=lambda rate: Fraction(rate.nanos, rate.per),
        default=None,
    )


def is_below(rate: Rate, least: Rate | None) -> bool:
    return least is not None and rate.nanos * least.per < least.nanos * rate.per


def lease_sku(pool: str, tier: Tier) -> str:
    """Metered in GPU-seconds."""
    return f"lease:{pool}:{tier}"


def notice_sku(sku: str, notice_seconds: int) -> str:
    """Return the SKU of leases whose notice is so long that they cost more."""
    return f"{sku}:{notice_seconds}s"


def model_tier(model: str, tier: str) -> str:
    """Return what a model's SKUs are of in a service tier: `default` has no name of its own."""
    return model if tier == "default" else f"{model}:{tier}"


def input_sku(model: str) -> str:
    """Metered in uncached input tokens."""
    return f"model:{model}:input"


def cache_read_sku(model: str) -> str:
    """Metered in input tokens whose work was kept from an earlier request."""
    return f"model:{model}:cache_read"


def cache_write_sku(model: str) -> str:
    """Metered in input tokens whose work is kept for later requests, at the caller's wish."""
    return f"model:{model}:cache_write"


def output_sku(model: str) -> str:
    """Metered in output tokens."""
    return f"model:{model}:output"


def training_sku(model: str) -> str:
    """Metered in tokens that a model was trained with: those of each example, once an epoch."""
    return f"model:{model}:training"


def tuned(model: str) -> str:
    """Return what the first prices of models that were fine-tuned from one are of."""
    return f"{model}:tuned"


def reasoning_sku(model: str) -> str:
    """Metered in output tokens that the model spent on thinking, beside its answer."""
    return f"model:{model}:reasoning"
