"""Which slots of nodes are whose: numbered through the nodes of one GPU model, in their order."""

from collections.abc import Iterable, Sequence

from sublet.engine.port import Node, Workload
from sublet.engine.records import Record


def slots_of(nodes: Sequence[Node], gpu_model: str) -> int:
    """Return how many slots of this model there are, free or not."""
    return sum(node.gpus for node in nodes if node.gpu_model == gpu_model)


def free_slots(
    workload: Workload, nodes: Sequence[Node], holding: Iterable[Record]
) -> tuple[int, ...] | None:
    """Return slots for the workload, the lowest ones, or None if there are too few.

    Args:
        workload: that is to start.
        nodes: of the cluster.
        holding: what runs, of whatever model.
    """
    model = workload.gpu_model
    held = [record for record in holding if record.workload.gpu_model == model]
    taken = {slot for record in held for slot in record.slots}
    # Who has its nodes alone goes where nobody is, and nobody comes to where such a one is.
    shut = taken if workload.exclusive else {
        slot for record in held if record.workload.exclusive for slot in record.slots
    }  # fmt: skip
    free: list[int] = []
    first = 0
    for node in nodes:
        if node.gpu_model != model:
            continue
        slots = range(first, first + node.gpus)
        first += node.gpus
        if shut.isdisjoint(slots):
            free += [slot for slot in slots if slot not in taken]
    return tuple(free[: workload.gpus]) if len(free) >= workload.gpus else None
