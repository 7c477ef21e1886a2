"""Which leases give way, chosen on columns, for many leases at once.

A test holds the rule `loss` to `leases.reclaim.choose`, for leases of one tenant and one tier:
turns of tenants, credit owed and checkpoints are not in these columns. The other orders are
those of others.
"""

import numpy as np

from sublet.simulation.rules import Rules
from sublet.simulation.scenario import INTERRUPTIBLE
from sublet.simulation.table import Ints, Leases


def choose(leases: Leases, rows: Ints, *, gpus: int, now: int, rules: Rules) -> Ints:
    """Return those of `rows` that go, so that at least `gpus` come free; all when too few.

    Args:
        leases: the table.
        rows: running leases of one pool that have not been told to go.
        gpus: how many must come free.
        now: in seconds since the epoch.
        rules: whose order it is.
    """
    size = leases.gpus[rows]
    order = rows[_order(leases, rows, now=now, rules=rules)]
    freed = np.cumsum(leases.gpus[order])
    count = int(np.searchsorted(freed, gpus)) + 1
    chosen = order[: min(count, len(order))]
    left = int(leases.gpus[chosen].sum()) - gpus
    if not rules.spares or left < int(size.min(initial=left + 1)):
        return chosen
    firm = (leases.tier[chosen] != INTERRUPTIBLE) & rules.tiers
    # What was taken and turns out not to be needed is spared: firm ones first, then large ones.
    kept = []
    places = np.lexsort((-leases.gpus[chosen], ~firm))
    for place in places.tolist():
        if int(leases.gpus[chosen[place]]) <= left:
            left -= int(leases.gpus[chosen[place]])
            kept.append(place)
    return np.delete(chosen, kept)


def _order(leases: Leases, rows: Ints, *, now: int, rules: Rules) -> Ints:
    started, request = leases.running_at[rows], leases.request[rows]
    # Older requests have lower numbers; a contract's are below nothing.
    match rules.victims:
        case "oldest":
            return np.lexsort((request, started)).astype(np.int64)
        case "youngest":
            return np.lexsort((-request, -started)).astype(np.int64)
        case _:
            work = leases.gpus[rows] * (now - started)
            rank = leases.tier[rows] if rules.tiers else np.zeros(len(rows), dtype=np.int64)
            return np.lexsort((request, work, rank)).astype(np.int64)
