"""The only place that asks the machine what time it is."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger(__name__)

# The machine's clock is followed in small corrections; in a larger one it was set by somebody.
_FOLLOWED: Final = timedelta(seconds=1)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    def now(self) -> datetime:
        """Return the current instant, in UTC."""
        ...


def wall() -> datetime:
    """Return what the machine's clock says, whoever set it when."""
    return datetime.now(UTC)


def steady_seconds() -> float:
    """Return the seconds since this machine started, its sleep counted. Nobody can set them."""
    boottime: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def boot_id() -> str:
    """Return the name of this start of this machine; "" where it has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a process's clock said once, and where and when that was by what nobody can set."""

    instant: datetime
    boot: str
    steady_seconds: float

    def now(self) -> datetime | None:
        """Return what that clock says now; None when this is another machine, or it restarted."""
        if not self.boot or self.boot != boot_id():
            return None
        return self.instant + timedelta(seconds=steady_seconds() - self.steady_seconds)


def beat_of(clock: Clock) -> Beat:
    return Beat(instant=clock.now(), boot=boot_id(), steady_seconds=steady_seconds())


class SystemClock:
    """The machine's time, going on steadily while somebody sets the machine's clock.

    Small corrections are followed. When the clock is put forward or back by more, this one goes
    on as before until the process is started again: nothing expires, and nobody is billed, for
    hours that never were. It never goes back.
    """

    def __init__(
        self,
        *,
        wall: Callable[[], datetime] = wall,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._turns = threading.Lock()
        self._from, self._at = wall(), steady()  # ours was this instant, at that second
        self._last = self._from
        self._off = timedelta(0)  # how far the machine's clock was off when last we said so

    def now(self) -> datetime:
        with self._turns:
            seen, at = self._wall(), self._steady()
            ours = self._from + timedelta(seconds=at - self._at)
            off = seen - ours
            if abs(off) <= _FOLLOWED:
                ours = seen
                self._from, self._at = seen, at
            self._last = max(self._last, ours)
            told, stepped = self._off, abs(off - self._off) > _FOLLOWED
            if stepped:
                self._off = off
        if stepped:
            log.warning(
                "clock.stepped",
                extra={
                    "seconds": round((off - told).total_seconds()),
                    "machine_says": seen,
                    "sublet_says": ours,
                },
            )
        return self._last

    def set(self, instant: datetime) -> bool:
        """Go on from `instant`, whatever the machine's clock says; False when we are there."""
        before = self.now()
        if abs(instant - before) <= 2 * _FOLLOWED:
            return False
        with self._turns:
            self._from, self._at = instant, self._steady()
            self._last = instant
        log.warning("clock.resumed", extra={"was": before, "is": instant})
        return True


class ManualClock:
    """A clock that moves only when told to: tests and the simulation run on it."""

    def __init__(self, start: datetime) -> None:
        assert start.tzinfo is UTC, start
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, step: timedelta) -> None:
        assert step >= timedelta(0), step
        self._now += step
