"""Keeping Slurm's reservations as the windows that were sold want them."""

import getpass
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.errors import Refused, Unavailable
from sublet.engine.port import Window
from sublet.engine.slurm import windows
from sublet.engine.slurm.commands import Slurm
from sublet.engine.slurm.looking import Look
from sublet.engine.slurm.pieces import Unknown
from sublet.engine.slurm.settings import Windows
from sublet.engine.slurm.view import Demand
from sublet.engine.slurm.windows import Kept

log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 1.0
_SELDOM_SECONDS: Final = 60.0  # where there is no window: an earlier process may have left some
_OVER: Final = timedelta(seconds=1)
_FLAGS: Final = "FLEX,IGNORE_JOBS,NO_HOLD_JOBS_AFTER"


class Keeper:
    """What there is stands in Slurm; this process only compares, so that any other goes on."""

    def __init__(self, slurm: Slurm, *, grace_seconds: float) -> None:
        self._slurm = slurm
        self._mode = slurm.settings.windows
        self._grace_seconds = grace_seconds
        self._next_at = 0.0
        self._windows: Sequence[Window] = ()
        self._yielding: frozenset[str] = frozenset()
        self._refused_at: dict[UUID, float] = {}
        self.kept: Sequence[Kept] = ()  # as last seen

    def standing(self, now: datetime) -> list[Kept]:
        """Return those that are not over: Slurm goes on to list them for half a minute."""
        return [one for one in self.kept if one.ends_at > now]

    def keep(
        self,
        sold: Sequence[Window],
        look: Look,
        demand: Sequence[Demand],
        *,
        window_of: Callable[[UUID], UUID | None],
        ahead: timedelta,
        now: datetime,
    ) -> None:
        """Make Slurm's reservations agree with the windows that were sold.

        Raises:
            Unavailable: Slurm did not answer; it is tried again.
        """
        if self._mode is Windows.OFF:
            return
        yielding: frozenset[str] = frozenset()
        if self._mode is Windows.YIELD:
            yielding = windows.overridden(
                sold, demand, look.nodes, grace_seconds=self._grace_seconds, now=now
            )
        urgent = yielding != self._yielding or sold != self._windows
        if not urgent and time.monotonic() < self._next_at:
            return
        self._look(ahead)
        wanted = windows.plan(
            sold,
            self.kept,
            look.nodes,
            draws=self._draws(look, window_of) if sold else {},
            internal=frozenset(
                name for found in demand if not found.waits for name in found.job.nodes
            ),
            yielding=yielding,
            mode=self._mode,
            grace_seconds=self._grace_seconds,
            now=now,
        )
        there = {one.window: one for one in self.kept}
        asked = {one.window: one for one in wanted}
        done = [self._end(one, now) for id_, one in there.items() if id_ not in asked]
        done += [self._put(there.get(one.window), one, ahead, now) for one in wanted]
        if any(done):
            self._look(ahead)
        self._windows, self._yielding = tuple(sold), yielding
        busy = sold or self.kept
        self._next_at = time.monotonic() + (_EVERY_SECONDS if busy else _SELDOM_SECONDS)

    def _draws(
        self, look: Look, window_of: Callable[[UUID], UUID | None]
    ) -> Mapping[UUID, frozenset[str]]:
        known = {id_: window for id_ in look.leases if (window := window_of(id_)) is not None}
        return windows.draws_of(look.leases, known)

    def _look(self, ahead: timedelta) -> None:
        try:
            text = self._slurm.run("scontrol", "-o", "show", "reservation")
            partition = self._slurm.settings.partition
            self.kept = windows.read(text, partition=partition, ahead=ahead)
        except (Refused, Unknown) as error:
            raise Unavailable(f"Slurm's reservations cannot be read: {error}") from error

    def _put(self, there: Kept | None, one: Kept, ahead: timedelta, now: datetime) -> bool:
        nodes = f"Nodes={','.join(sorted(one.nodes))}"
        if there is None:
            starts = "now" if one.starts_at <= now else f"{one.starts_at + ahead:%Y-%m-%dT%H:%M:%S}"
            done = self._change(
                one, "create", "reservation", f"ReservationName={one.name}", f"StartTime={starts}",
                f"EndTime={one.ends_at + ahead:%Y-%m-%dT%H:%M:%S}", nodes, f"Flags={_FLAGS}",
                f"PartitionName={self._slurm.settings.partition}", f"Users={getpass.getuser()}",
            )  # fmt: skip
            if done:
                log.info("slurm.reserved", extra={"window": one.window, "nodes": len(one.nodes)})
            return done
        changes = [] if there.nodes == one.nodes else [nodes]
        if there.ends_at != one.ends_at:
            changes.append(f"EndTime={one.ends_at + ahead:%Y-%m-%dT%H:%M:%S}")
        if not changes:
            return False
        return self._change(one, "update", f"ReservationName={one.name}", *changes)

    def _end(self, one: Kept, now: datetime) -> bool:
        """Take one away. What runs in it runs on; Slurm deletes none that is in use."""
        if one.ends_at <= now + _OVER:
            return False  # it is over; Slurm clears it away at its next look
        if self._try("delete", f"ReservationName={one.name}") or self._try(
            "update", f"ReservationName={one.name}", "EndTime=now"
        ):
            log.info("slurm.reservation_ended", extra={"window": one.window})
            return True
        # It has not begun, and a lease runs on its nodes: only one that has begun can be ended.
        return self._try("update", f"ReservationName={one.name}", "StartTime=now",
                         "EndTime=now+1minute")  # fmt: skip

    def _try(self, *arguments: str) -> bool:
        try:
            self._slurm.run("scontrol", *arguments)
        except Refused as error:
            log.debug("slurm.refused", extra={"detail": str(error)})
            return False
        return True

    def _change(self, one: Kept, *arguments: str) -> bool:
        if time.monotonic() < self._refused_at.get(one.window, 0.0):
            return False
        try:
            self._slurm.run("scontrol", *arguments)
        except Refused as error:
            # Without the right to (Operator, or SlurmUser) the window is kept as without Slurm.
            self._refused_at[one.window] = time.monotonic() + _SELDOM_SECONDS
            log.warning("slurm.not_reserved", extra={"window": one.window, "detail": str(error)})
            return False
        self._refused_at.pop(one.window, None)
        return True
