"""How much of a contract's capacity is there, and whose it is first."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A step that runs."""

    id: UUID
    pool: str
    gpus: int
    lost_gpus: int  # that were there, and were taken back and credited
    delivered: int | None  # at once so far; None: nobody looked yet
    unpaid: bool  # its tenant cannot pay, so nothing is set aside for it


def delivered(steps: Sequence[Running], free: Mapping[str, int]) -> dict[UUID, int]:
    """Return how many GPUs of each step are there now, where that is more than ever before.

    Who signed first gets what is free first. What was there once stays delivered: if it is taken
    back, that is a promise broken, and credited as such.

    Args:
        steps: that run, in the order of their contracts.
        free: GPUs of each pool that neither internal jobs nor leases of others have.
    """
    left: dict[str, int] = defaultdict(int, free)
    for step in steps:
        left[step.pool] -= max((step.delivered or 0) - step.lost_gpus, 0)
    more = {}
    for step in steps:
        known = step.delivered or 0
        if known >= step.gpus:
            continue
        # Who is late itself is not kept waiting by others.
        some = step.gpus - known if step.unpaid else min(step.gpus - known, max(left[step.pool], 0))
        left[step.pool] -= some
        if some or step.delivered is None:
            more[step.id] = known + some
    return more
