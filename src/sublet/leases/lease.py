"""What a lease is, every move it can make, and which move comes next.

requested ──► admitted ──► provisioning ──► running
    │             │              │             │
    └──► ended ◄──┘              └► draining ◄─┘──► ended

A lease that never reached the engine ends at once. One that did must drain, so there is a
single place where we learn that its GPUs are empty again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NewType, Self
from uuid import UUID

from sublet.core.errors import Conflict
from sublet.engine.port import Observation, Phase
from sublet.market.price import Tier

LeaseId = NewType("LeaseId", UUID)

# How long a workload may take to come up before it is given up.
PROVISIONING_LIMIT: Final = timedelta(minutes=2)


class State(StrEnum):
    REQUESTED = "requested"  # wants capacity, holds none
    ADMITTED = "admitted"  # capacity and credit are set aside
    PROVISIONING = "provisioning"  # the engine is bringing it up
    RUNNING = "running"  # usable, therefore billable
    DRAINING = "draining"  # told to leave; the notice is running
    ENDED = "ended"  # holds nothing


class EndReason(StrEnum):
    COMPLETED = "completed"  # its command ended by itself
    RELEASED = "released"  # the tenant gave it back
    EXPIRED = "expired"  # it reached the end it was sold with
    RECLAIMED = "reclaimed"  # internal demand took the capacity back
    CREDIT_EXHAUSTED = "credit_exhausted"  # the wallet could not pay for the next minute
    START_FAILED = "start_failed"  # its command did not come up
    NODE_LOST = "node_lost"  # its process is gone without an exit status
    SHUTDOWN = "shutdown"  # the operator stopped Sublet


MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.REQUESTED: frozenset({State.ADMITTED, State.ENDED}),
    State.ADMITTED: frozenset({State.PROVISIONING, State.ENDED}),
    State.PROVISIONING: frozenset({State.RUNNING, State.DRAINING}),
    State.RUNNING: frozenset({State.DRAINING}),
    State.DRAINING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}
LEAVING: Final = frozenset({State.DRAINING, State.ENDED})
# In these states its GPUs are set aside for it.
HOLDING: Final = frozenset({State.ADMITTED, State.PROVISIONING, State.RUNNING, State.DRAINING})


_RANKS: Final = {Tier.INTERRUPTIBLE: 0, Tier.ON_DEMAND: 1, Tier.RESERVED: 2, Tier.CONTRACT: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    id: LeaseId
    tenant_id: UUID
    pool: str
    gpus: int
    tier: Tier
    notice: timedelta  # between being told to go and being killed, as promised when sold
    price_id: int
    max_duration: timedelta
    requested_at: datetime
    state: State
    since: datetime  # when it entered `state`
    version: int  # counts moves, and guards the write
    end_reason: EndReason | None = None  # set by the first move that leaves, then kept
    release_asked: EndReason | None = None  # somebody wants it to end; the loop acts on it
    running_at: datetime | None = None  # usable, so billed, from here …
    stopped_at: datetime | None = None  # … until here
    ends_at: datetime | None = None  # running_at + max_duration
    stops_at: datetime | None = None  # while draining: killed then
    paid_until: datetime | None = None  # held money covers it until here
    exit_code: int | None = None
    detail: str | None = None  # a sentence for people
    firm: timedelta | None = timedelta(0)  # from its start; None: to its end, as sold before
    credit_percent: int = 100  # of the price of what is left of `firm`, should it be broken
    checkpoint_at: datetime | None = None  # its work is safe until then, as its tenant says
    noticed_at: datetime | None = None  # when it was told to go
    reservation_id: UUID | None = None  # on which it is drawn, and which pays for it
    until: datetime | None = None  # its end at the latest
    list_price_id: int | None = None  # what the list said; None: it was sold at the list price
    resumable: bool = False  # once reclaimed, it waits to come back
    resumes: LeaseId | None = None  # the lease that it goes on with
    exclusive: bool = False  # its nodes are its own

    @property
    def paused(self) -> bool:
        return (
            self.resumable and self.state is State.ENDED and self.end_reason is EndReason.RECLAIMED
        )

    @property
    def firm_until(self) -> datetime | None:
        """Until when it may not be taken back without a credit; None: not known, or never."""
        if self.running_at is None or not self.firm:
            return None
        return self.running_at + self.firm

    def is_firm(self, now: datetime) -> bool:
        """Say whether taking it back now breaks a promise."""
        if self.tier.drawn:
            return True
        if self.tier is not Tier.ON_DEMAND or self.firm is None:
            return self.tier is Tier.ON_DEMAND
        return self.running_at is None or now < self.running_at + self.firm

    def rank(self, now: datetime) -> int:
        """Return how late it gives way: what is not firm first, contracts last."""
        if not self.is_firm(now):
            return 0
        return _RANKS[self.tier]

    def move(self, move: "Move") -> Self:
        """Return the lease one move later.

        Raises:
            Conflict: the move cannot follow the present state; somebody moved it first.
        """
        if move.to not in MOVES[self.state]:
            raise Conflict(f"lease {self.id} cannot go from {self.state} to {move.to}")
        reason = self.end_reason or move.reason
        assert (move.to in LEAVING) == (reason is not None), (move, reason)
        # The engine's clock, or another control plane's, may be behind: a history never goes back.
        # But for an end: the engine may find that it had gone before it was told to, and has
        # given its GPUs to somebody else since.
        gone = move.to is State.ENDED and self.running_at is not None
        at = max(move.at, self.running_at if gone and self.running_at else self.since)
        moved = replace(self, state=move.to, since=at, version=self.version + 1, end_reason=reason)
        if move.exit_code is not None:
            moved = replace(moved, exit_code=move.exit_code)
        if move.detail is not None:
            moved = replace(moved, detail=move.detail)
        match move.to:
            case State.RUNNING:
                ends_at = at + self.max_duration
                if self.until is not None:
                    ends_at = min(ends_at, max(self.until, at))
                return replace(moved, running_at=at, ends_at=ends_at)
            case State.DRAINING:
                told_at = max(move.told_at or at, at)
                return replace(
                    moved,
                    stopped_at=None if self.running_at is None else at,
                    stops_at=told_at + self.notice,
                    noticed_at=told_at,
                )
            case _:
                return moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    to: State
    at: datetime  # when it happened in the world, which may be before we learnt of it
    told_at: datetime | None = None  # its notice runs from then; None: from `at`
    reason: EndReason | None = None
    exit_code: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Ask the engine to start the workload."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the engine to stop the workload."""


Decision = Move | Start | Stop | None


def decide(lease: Lease, seen: Observation, now: datetime) -> Decision:
    """Say what `lease` needs next, from the present alone; None to leave it be.

    Nothing here depends on having seen an earlier event, so a crash or a missed message
    costs one pass of the loop and never a lease.
    """
    match lease.state, seen.phase:
        case State.REQUESTED | State.ENDED, _:
            return None
        case State.ADMITTED, _ if lease.release_asked is not None:
            return Move(to=State.ENDED, at=now, reason=lease.release_asked)
        case State.ADMITTED, _:
            return Move(to=State.PROVISIONING, at=now)
        case State.PROVISIONING, Phase.EXITED | Phase.LOST if seen.started_at is not None:
            # It ran and ended between two looks. It was usable, so it runs first.
            return Move(to=State.RUNNING, at=max(seen.started_at, lease.since))
        case State.PROVISIONING, Phase.EXITED | Phase.LOST:
            reclaimed = seen.reclaimed_at is not None
            return Move(
                to=State.DRAINING, at=now,
                reason=EndReason.RECLAIMED if reclaimed else EndReason.START_FAILED,
                exit_code=seen.exit_code, detail=seen.detail,
            )  # fmt: skip
        case State.PROVISIONING, Phase.RUNNING:
            return Move(to=State.RUNNING, at=max(seen.started_at or now, lease.since))
        case State.PROVISIONING, _ if lease.release_asked is not None:
            return Move(to=State.DRAINING, at=now, reason=lease.release_asked)
        case State.PROVISIONING, _ if now >= lease.since + PROVISIONING_LIMIT:
            return Move(
                to=State.DRAINING, at=now, reason=EndReason.START_FAILED,
                detail="it did not come up in time",
            )  # fmt: skip
        case State.PROVISIONING, Phase.ABSENT:
            return Start()
        case State.RUNNING, Phase.EXITED:
            return Move(
                to=State.DRAINING, at=_usable_until(lease, _told_or_gone(seen, now)),
                reason=_reason_of_exit(lease, seen, now), exit_code=seen.exit_code,
                detail=seen.detail,
            )  # fmt: skip
        case State.RUNNING, Phase.LOST | Phase.ABSENT:
            return Move(
                to=State.DRAINING, at=_usable_until(lease, _told_or_gone(seen, now)),
                reason=EndReason.NODE_LOST if seen.reclaimed_at is None else EndReason.RECLAIMED,
                detail=seen.detail,
            )  # fmt: skip
        case State.RUNNING, _ if lease.ends_at is not None and now >= lease.ends_at:
            return Move(
                to=State.DRAINING, at=_usable_until(lease, lease.ends_at),
                reason=EndReason.EXPIRED,
            )  # fmt: skip
        case State.RUNNING, _ if lease.paid_until is not None and now >= lease.paid_until:
            return Move(to=State.DRAINING, at=lease.paid_until, reason=EndReason.CREDIT_EXHAUSTED)
        case State.RUNNING, _ if seen.reclaimed_at is not None:
            # The cluster was faster than we: it told the workload to go by itself.
            return Move(
                to=State.DRAINING, at=_usable_until(lease, seen.reclaimed_at),
                reason=EndReason.RECLAIMED,
            )  # fmt: skip
        case State.RUNNING, _ if lease.release_asked is not None:
            # Billed no further than it is known to have run, and told now.
            seen_at = now if seen.seen_at is None else min(seen.seen_at, now)
            return Move(
                to=State.DRAINING, at=seen_at, told_at=now, reason=lease.release_asked
            )  # fmt: skip
        case State.DRAINING, Phase.EXITED | Phase.LOST | Phase.ABSENT:
            return Move(to=State.ENDED, at=seen.exited_at or now, exit_code=seen.exit_code)
        case State.DRAINING, _:
            return Stop()
        case _:
            return None


def _usable_until(lease: Lease, at: datetime) -> datetime:
    """Nothing is billed that was not paid for: the engine's fence may have come later."""
    return at if lease.paid_until is None else min(at, lease.paid_until)


def _told_or_gone(seen: Observation, now: datetime) -> datetime:
    """Nothing is billed from the notice on, whoever gave it."""
    gone_at = seen.exited_at or now
    return gone_at if seen.reclaimed_at is None else min(seen.reclaimed_at, gone_at)


def _reason_of_exit(lease: Lease, seen: Observation, now: datetime) -> EndReason:
    """Say why a running workload is gone: by itself, or by the fence at its deadline."""
    exited_at = seen.exited_at or now
    if lease.ends_at is not None and exited_at >= lease.ends_at:
        return EndReason.EXPIRED
    # Before the fence it left by itself, though nobody was there to pay for its last seconds.
    if lease.paid_until is not None and exited_at >= lease.paid_until + lease.notice:
        return EndReason.CREDIT_EXHAUSTED
    if seen.reclaimed_at is not None:
        return EndReason.RECLAIMED
    return EndReason.COMPLETED
