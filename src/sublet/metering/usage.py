"""What was used, and what it cost.

Token counters are disjoint: uncached input, cache read, cache write, output and reasoning
output add up to what the engine worked on. `delivered_tokens` is how many of the last two were
handed to the client; it is kept beside, and is never what is charged on our own replicas.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sublet.market.price import Price


class Outcome(StrEnum):
    COMPLETED = "completed"
    ABORTED = "aborted"  # the client hung up
    RECLAIMED = "reclaimed"  # an internal job took the capacity
    FAILED = "failed"  # ours to blame; what was delivered is charged, no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One fact. (source, sequence) makes a repeated report count once."""

    id: UUID
    source: str
    sequence: int
    tenant_id: UUID
    api_key_id: UUID | None = None
    lease_id: UUID | None = None  # set for GPU-seconds of a lease, …
    model: str | None = None  # … this for tokens of a model, …
    reservation_id: UUID | None = None  # … and this for a window: one of the three
    request_id: str | None = None
    gpu_seconds: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    delivered_tokens: int = 0
    outcome: Outcome
    happened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One priced part of a usage."""

    price: Price
    quantity: int
