"""Which leases give way when internal jobs need their GPUs: those whose loss is least."""

from collections.abc import Sequence
from datetime import datetime

from sublet.leases.lease import Lease, State


def choose(leases: Sequence[Lease], *, gpus: int, now: datetime) -> list[Lease]:
    """Return leases that free at least `gpus` GPUs, cheapest loss first.

    What is not firm goes first, then on-demand leases, then reserved ones, and contracts last. Among equals the youngest goes
    first: least work is lost. What the choice turns out not to need is spared again, so that
    one large lease does not take three small ones with it.

    Args:
        leases: of one pool, any state; only those that have not been told to go are chosen.
        gpus: how many must come free. All that can go, go, when there are too few.
        now: the present instant.
    """
    candidates = sorted(
        (
            lease
            for lease in leases
            if lease.state in {State.ADMITTED, State.PROVISIONING, State.RUNNING}
            and lease.release_asked is None
        ),
        key=lambda lease: (
            lease.rank(now),
            lease.gpus * (now - (lease.running_at or now)).total_seconds(),
            # As Slurm's own preemption has it: should it choose beside us, it chooses the same.
            lease.requested_at,
            lease.id,
        ),
    )
    chosen: list[Lease] = []
    freed = 0
    for lease in candidates:
        if freed >= gpus:
            break
        chosen.append(lease)
        freed += lease.gpus
    for lease in sorted(chosen, key=lambda lease: (-lease.rank(now), -lease.gpus)):
        if freed - lease.gpus >= gpus:
            chosen.remove(lease)
            freed -= lease.gpus
    return chosen
