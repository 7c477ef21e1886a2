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
# Before a pool was seen for a week and a day, "unproven" says that too few windows were seen.
_YOUNG_HOURS: Final = 192
_COLD_SHARE: Final = 10  # one in so many is kept while little is known
_COLD_AHEAD: Final = timedelta(days=1)
_HOUR: Final = timedelta(hours=1)
_STALE: Final = timedelta(seconds=STALE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firm:
    """What a plan said may be promised from then on, promises that stood included."""

    made_at: datetime
    gpus: Mapping[int, int]  # window hours → GPUs
    later: Mapping[int, Sequence[int]]  # window hours → GPUs, were it sold that many hours later
    why: Mapping[int, Sequence[Reason]]  # window hours → why no more
    known_hours: float  # of the past that it was learnt from

    def is_cold(self, hours: int) -> bool:
        """Say whether too little is known for windows of this length."""
        young = self.known_hours < _YOUNG_HOURS and Reason.UNPROVEN in self.why[hours]
        return young or not _COLD.isdisjoint(self.why[hours])

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
        later={
            int(window.removesuffix("h")): counts
            for window, counts in plan.get("later", {}).items()
        },
        why={
            hours: [
                Reason(said["reason"])
                for said in plan["reasons"]
                if not said["windows"] or f"{hours}h" in said["windows"]
            ]
            for hours in gpus
        },
        known_hours=plan["known_hours"],
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
    if firm.is_cold(hours):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """GPUs that are promised to somebody in [start, end)."""

    gpus: int
    start: datetime
    end: datetime


def most_promised(promises: Sequence[Promised], start: datetime, end: datetime) -> int:
    """Return the most GPUs that are promised at any instant of [start, end)."""
    within = [one for one in promises if one.start < end and one.end > start]
    # It rises only where a promise starts.
    instants = {start} | {one.start for one in within if one.start > start}
    return max(
        sum(one.gpus for one in within if one.start <= instant < one.end) for instant in instants
    )


def window_room(
    firm: Firm | None,
    *,
    start: datetime,
    end: datetime,
    gpus: int,
    promises: Sequence[Promised],
    now: datetime,
) -> Room:
    """Say how many more GPUs may be promised for [start, end), which may lie in the future.

    A window that is longer than any that is planned is held piece by piece.
    """
    hours = _length(firm, end - start)
    if firm is None or firm.is_cold(hours):
        if end > now + _COLD_AHEAD:
            return Room(
                gpus=0,
                why="little is known of the pool yet, so nothing is promised beyond the next day",
            )
        return _cold(gpus, most_promised(promises, start, end), "")
    if now - firm.made_at > _STALE:
        return Room(
            gpus=0, why=f"the last plan is of {firm.made_at:%Y-%m-%d %H:%M} UTC; a new one is due"
        )
    room, at = gpus, start
    while at < end:
        piece = min(at + firm.longest, end)
        later = firm.later.get(_length(firm, piece - at), ())
        # Between two hours that were planned, what both hold.
        first = max((at - firm.made_at) // _HOUR, 0)
        counts = later[first : first + 2]
        if piece - firm.made_at > len(later) * _HOUR + firm.longest or len(counts) < 1:
            ahead = firm.made_at + len(later) * _HOUR
            return Room(gpus=0, why=f"the plan looks ahead until {ahead:%Y-%m-%d %H:%M} UTC")
        room = min(room, min(counts) - most_promised(promises, at, piece))
        at = piece
    reasons = "".join(f" ({reason})" for reason in firm.why[hours])
    return Room(
        gpus=max(room, 0),
        why=f"the plan holds {max(room, 0)} beside what is promised then{reasons}",
    )


def _length(firm: Firm | None, window: timedelta) -> int:
    """Return the hours of the shortest window that is planned and no shorter; else the longest."""
    if firm is None:
        return 0
    lengths = sorted(firm.gpus)
    return next((hours for hours in lengths if timedelta(hours=hours) >= window), lengths[-1])


def _cold(gpus: int, promised: int, taken: str) -> Room:
    return Room(
        gpus=max(gpus - gpus // _COLD_SHARE - promised, 0),
        why=f"little is known of the pool yet, so a tenth of it is kept{taken}",
    )
