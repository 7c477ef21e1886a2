"""From what we own and what our own people use and wait for, what may be lent now."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How a pool stands at one instant, in GPUs."""

    gpus: int  # healthy
    internal_running: int
    internal_pending: int  # asked for by internal jobs and not yet given
    leased: int  # set aside for leases, from admission until the engine shows them empty
    lendable: bool  # does the operator lend of this pool at all?
    lending_limit: int | None  # most GPUs ever lent; None: no limit
    aside: int = 0  # set aside for windows that run or are about to, and not in use
    reserve: int = 0  # never sold, so that sudden internal demand need not wait


def sellable_gpus(pressure: Pressure) -> int:
    """Return how many more GPUs may be lent now, with internal jobs still first.

    What an internal job waits for counts as used: selling it would only have to be undone.
    """
    if not pressure.lendable:
        return 0
    idle = pressure.gpus - pressure.internal_running - pressure.internal_pending - pressure.leased
    idle -= pressure.reserve + pressure.aside
    if pressure.lending_limit is not None:
        idle = min(idle, pressure.lending_limit - pressure.leased - pressure.aside)
    return max(idle, 0)


def missing_gpus(pressure: Pressure, *, leaving: int) -> int:
    """Return how many leased GPUs must be reclaimed for the internal jobs that wait.

    And where a pool has shrunk below what is lent of it: those that are no longer there.

    Args:
        pressure: the pool now.
        leaving: GPUs of leases that are draining already: they will come free by themselves.
    """
    free = pressure.gpus - pressure.internal_running - pressure.leased
    return max(pressure.internal_pending - free - leaving, 0)


def missing_for_windows(pressure: Pressure, *, leaving: int) -> int:
    """Return how many leased GPUs must come back for windows that start.

    Internal jobs come first: what they hold or wait for is for no window.

    Args:
        pressure: the pool now.
        leaving: GPUs of leases that are draining already, or are told to.
    """
    free = pressure.gpus - pressure.internal_running - pressure.internal_pending - pressure.leased
    return max(pressure.aside - max(free + leaving, 0), 0)
