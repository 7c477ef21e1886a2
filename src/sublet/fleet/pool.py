"""Which GPUs exist, and what may be lent of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import Rate
from sublet.engine.port import InternalJob, Node

# The most that an operator may let an internal job wait.
LONGEST_NOTICE_SECONDS: Final = 24 * 3600
# How long an on-demand lease may be firm: no longer than any window that is planned.
FIRM_SECONDS: Final = range(60, 86_400 + 1)
_DAY_SECONDS: Final = 86_400
_QUIET: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """Hours of each day, UTC, in which nothing new is sold. May reach over midnight."""

    start: int  # seconds since midnight
    end: int  # half-open; never equal to `start`

    def wait(self, at: datetime) -> timedelta:
        """Return how long after `at` the next quiet hours begin; zero within them."""
        second = at.hour * 3600 + at.minute * 60 + at.second
        if (second - self.start) % _DAY_SECONDS < (self.end - self.start) % _DAY_SECONDS:
            return timedelta(0)
        return timedelta(seconds=(self.start - second) % _DAY_SECONDS)

    def meet(self, start: datetime, end: datetime) -> bool:
        """Say whether any of [start, end) is quiet."""
        return start + self.wait(start) < end

    def __str__(self) -> str:
        return f"{_clock(self.start)}-{_clock(self.end)}"


def parse_quiet(text: str) -> QuietHours:
    """Read hours such as "22:00-06:30".

    Raises:
        Invalid: they are not.
    """
    if (match := _QUIET.fullmatch(text)) is None:
        raise Invalid(f"quiet_hours must be two times such as 22:00-06:30, not {text[:40]!r}")
    hours, minutes, until_hours, until_minutes = (int(number) for number in match.groups())
    return QuietHours(
        start=hours * 3600 + minutes * 60, end=until_hours * 3600 + until_minutes * 60
    )


def _clock(seconds: int) -> str:
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator says of a pool."""

    notice_seconds: int  # the longest an internal job may wait for leases to go
    lendable: bool = True
    lending_limit: int | None = None  # most GPUs ever lent; None: no limit
    reserve: int = 0  # GPUs that are never sold
    firm_seconds: int = 3_600  # for so long an on-demand lease is firm
    firm_confidence: float | None = None  # share of promises to be kept; None: the instance's
    credit_percent: int = 100  # of the price of what is left of a promise that is broken
    floor: Rate | None = None  # the least that a GPU-hour is sold for
    quiet: QuietHours | None = None
    exclusive: bool = False  # a tenant's lease has its nodes to itself

    def check(self) -> None:
        """Raises Invalid: a value is out of range."""
        if not 0 <= self.notice_seconds <= LONGEST_NOTICE_SECONDS:
            raise Invalid(f"notice_seconds must lie in 0…{LONGEST_NOTICE_SECONDS}")
        if self.lending_limit is not None and self.lending_limit < 0:
            raise Invalid("lending_limit must not be negative")
        if self.reserve < 0:
            raise Invalid("reserve must not be negative")
        if self.firm_seconds not in FIRM_SECONDS:
            raise Invalid(f"firm_seconds must lie in {FIRM_SECONDS[0]}…{FIRM_SECONDS[-1]}")
        if self.firm_confidence is not None and not 0.5 <= self.firm_confidence <= 0.9999:
            raise Invalid("firm_confidence must lie in 0.5…0.9999")
        if not 0 <= self.credit_percent <= 1_000:
            raise Invalid("credit_percent must lie in 0…1000")
        if self.floor is not None and self.floor.nanos <= 0:
            raise Invalid("a price floor is more than zero; leave it out to have none")
        if self.quiet is not None and self.quiet.start == self.quiet.end:
            raise Invalid("quiet hours must begin and end at different times")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One GPU model at one site, and the operator's policy for it."""

    name: str  # the GPU model
    gpus: int  # healthy now
    policy: Policy
    node_gpus: int = 1  # of its largest node


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What internal jobs hold and wait for in one pool, in GPUs."""

    running: int
    pending: int


def gpus_by_pool(nodes: Sequence[Node]) -> dict[str, int]:
    """Return {pool: healthy GPUs} of what the engine reports."""
    pools: dict[str, int] = {}
    for node in nodes:
        pools[node.gpu_model] = pools.get(node.gpu_model, 0) + node.gpus
    return pools


def demand_of(jobs: Sequence[InternalJob], pool: str) -> Demand:
    """Return what internal jobs hold and wait for in `pool`."""
    ours = [job for job in jobs if job.gpu_model == pool]
    return Demand(
        running=sum(job.gpus for job in ours if job.running),
        pending=sum(job.gpus for job in ours if job.pending),
    )


def demand_by_pool(jobs: Sequence[InternalJob]) -> dict[str, Demand]:
    """Return what internal jobs hold and wait for in every pool that they name, in one pass."""
    running: dict[str, int] = {}
    pending: dict[str, int] = {}
    for job in jobs:
        if job.running:
            running[job.gpu_model] = running.get(job.gpu_model, 0) + job.gpus
        elif job.pending:
            pending[job.gpu_model] = pending.get(job.gpu_model, 0) + job.gpus
    return {
        pool: Demand(running=running.get(pool, 0), pending=pending.get(pool, 0))
        for pool in running.keys() | pending.keys()
    }
