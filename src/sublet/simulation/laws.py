"""The laws, checked after every step from the rows themselves and not from running totals.

1. internal first: what internal jobs waited for longer than the pool's longest notice, and
   would fit into healthy GPUs, is theirs;
2. no GPU is sold twice: internal and leased GPUs fit into the healthy ones, and the GPU-seconds
   of a step add up;
3. no money is lost or made: debits equal credits, and what is held is what leases hold;
4. no tenant overspends: no prepaid account is below nothing.
"""

from dataclasses import dataclass, field

import numpy as np

from sublet.ledger.columns import Book
from sublet.simulation.scenario import STEP
from sublet.simulation.table import Ints, Leases


@dataclass(slots=True)
class Laws:
    """What was broken so far. `internal_first` counts pools and steps, and so on."""

    checks: int = 0
    broken: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("internal_first", "no_double_sale", "money", "no_overspend"), 0
        )
    )
    first: list[str] = field(default_factory=list)  # the first of them, in words

    @property
    def violations(self) -> int:
        return sum(self.broken.values())

    def internal_first(
        self, held: Ints, healthy: Ints, wanted: Ints, wounded: Ints, *, step: int, notice: Ints
    ) -> None:
        """Compare what internal jobs hold with what was wanted throughout the longest notice.

        Args:
            held: by internal jobs, shape (pools,).
            healthy: shape (pools,).
            wanted: by internal jobs in the last steps, this one last; shape (steps, pools).
            wounded: GPUs that failed in those steps and were not leased: their jobs wait anew.
            step: of the simulation, for messages.
            notice: seconds, shape (pools,).
        """
        back = -(-notice // STEP)  # whole steps: what was wanted before is due by now
        due, lost = wanted[-1], wounded[-1]
        for number in range(1, min(int(back.max()), len(wanted) - 1) + 1):
            due = np.where(back >= number, np.minimum(due, wanted[-1 - number]), due)
            if number < int(back.max()):
                lost = np.where(back > number, lost + wounded[-1 - number], lost)
        if len(wanted) > int(back.max()):
            short = np.flatnonzero(held < np.minimum(due - lost, healthy))
            self._say("internal_first", short, step, "internal jobs wait for what leases hold")

    def no_double_sale(
        self, leases: Leases, internal: Ints, healthy: Ints, idle_seconds: Ints, *, step: int
    ) -> None:
        over = leases.occupied(len(healthy)) + internal > healthy
        self._say("no_double_sale", np.flatnonzero(over), step, "more in use than healthy")
        lost = np.flatnonzero(idle_seconds < 0)
        self._say("no_double_sale", lost, step, "GPU-seconds do not add up")

    def money(self, leases: Leases, book: Book, *, step: int) -> None:
        pending, posted = book.imbalance()
        held = int(leases.held[leases.alive].sum())
        apart = [pending, posted, int(book.debits_pending.sum()) - held]
        self._say("money", np.flatnonzero(apart), step, "debits, credits and holds differ")
        self._say("no_overspend", book.overdrawn(), step, "an account is overdrawn")
        self.checks += 1

    def _say(self, law: str, where: Ints, step: int, what: str) -> None:
        self.broken[law] += len(where)
        if len(where) and len(self.first) < 20:
            self.first.append(f"step {step}: {law}: {what} (place {int(where[0])})")
