"""How many lines of batches may run on a model's replicas: what interactive traffic leaves. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sublet.models.deployment import Deployment, Replica
from sublet.models.scaling import Load

# Of the time that a first token may take: above it, first tokens are late enough already.
_LATE: Final = 0.5


class Room(NamedTuple):
    free: int  # more may run
    over: int  # fewer should


def room(
    idle: Sequence[Replica],
    deployment: Deployment,
    load: Load | None,
    *,
    slots: int,
    running: int,
) -> Room:
    """Return how many lines more, or fewer, may run on all gateways together.

    Of each replica a slot stays free, so that an interactive request finds one at once. With a
    single slot, lines run only while nobody else does.

    Args:
        idle: replicas that are ready and run on what is idle.
        deployment: of the model.
        load: what interactive traffic has of it now; None: nothing.
        slots: requests that one replica answers at a time.
        running: lines that run now.
    """
    load = load or Load()
    places = len(idle) * slots
    spare = len(idle) if slots > 1 else 0
    left = places - load.requests - running
    if slots == 1 and load.requests:
        return Room(free=0, over=running)
    if left < 0:
        return Room(free=0, over=min(running, -left))
    late = load.first_token_ms is not None and load.requests > 0
    if late and (load.first_token_ms or 0) > _LATE * deployment.scaling.first_token_ms:
        return Room(free=0, over=0)
    return Room(free=max(0, left - spare), over=0)
