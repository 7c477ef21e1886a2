"""Whether a pool's newest plan holds one more promise, and why no more.

A plan says for how many GPUs of a pool a promise of 1, 4 or 24 hours would keep, beside no
other. So what is promised already is taken off. While too little is known for any plan, promises
are made with care: of nine tenths of the pool, and only of what is idle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sublet.planner.prospect import STALE_SECONDS, Reason

_COLD: Final = frozenset({Reason.NO_HISTORY, Reason.NOT_LEARNT, Reason.COLD_START})
_COLD_SHARE: Final = 10  # one in so many is kept while little is known
_STALE: Final = timedelta(seconds=STALE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firm:
    """What a plan said may be promised from then on, promises that stood included."""

    made_at: datetime
    gpus: Mapping[int, int]  # window hours → GPUs
    why: Mapping[int, Sequence[Reason]]  # window hours → why no more

    @property
    def longest(self) -> timedelta:
        return timedelta(hours=max(self.gpus))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many more GPUs may be promised, and why no more."""

    gpus: int
    why: str


def read_firm(made_at: datetime, plan: Mapping[str, Any]) -> Firm:
    """Read what of a plan is about promises; `plan` is as `service.document` wrote it."""
    gpus = {int(window.removesuffix("h")): int(count) for window, count in plan["firm"].items()}
    return Firm(
        made_at=made_at,
        gpus=gpus,
        why={
            hours: [
                Reason(said["reason"])
                for said in plan["reasons"]
                if not said["windows"] or f"{hours}h" in said["windows"]
            ]
            for hours in gpus
        },
    )


def firm_room(
    firm: Firm | None, *, window: timedelta, gpus: int, promised: int, now: datetime
) -> Room:
    """Say how many more GPUs may be promised from now on for `window`.

    Args:
        firm: of the newest plan; None: there is none yet.
        window: how long the promise is to hold; more than a plan looks ahead holds nothing.
        gpus: of the pool, healthy.
        promised: the most that is promised already at any instant of the window.
        now: the present instant.
    """
    taken = f", {promised} promised already" if promised else ""
    if firm is None:
        return _cold(gpus, promised, taken)
    lengths = [hours for hours in sorted(firm.gpus) if timedelta(hours=hours) >= window]
    if not lengths:
        longest = int(firm.longest.total_seconds()) // 3600
        return Room(gpus=0, why=f"nothing is promised for longer than {longest} hours")
    hours = lengths[0]
    if _COLD.intersection(firm.why[hours]):
        return _cold(gpus, promised, taken)
    if now - firm.made_at > _STALE:
        return Room(
            gpus=0, why=f"the last plan is of {firm.made_at:%Y-%m-%d %H:%M} UTC; a new one is due"
        )
    reasons = "".join(f" ({reason})" for reason in firm.why[hours])
    return Room(
        gpus=max(firm.gpus[hours] - promised, 0),
        why=f"the plan holds {firm.gpus[hours]} GPUs for {hours} h{reasons}{taken}",
    )


def _cold(gpus: int, promised: int, taken: str) -> Room:
    return Room(
        gpus=max(gpus - gpus // _COLD_SHARE - promised, 0),
        why=f"little is known of the pool yet, so a tenth of it is kept{taken}",
    )
