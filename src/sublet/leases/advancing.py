"""Taking leases on: load, decide, apply. The engine is never called inside a transaction."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Invalid, Refused, Unavailable
from sublet.core.failpoint import failpoint
from sublet.engine.port import Engine, Notice, Observation, Workload
from sublet.leases import blocks, store
from sublet.leases.lease import EndReason, Lease, LeaseId, Move, Start, State, Stop, decide

log = logging.getLogger(__name__)

_TOGETHER: Final = 500  # leases that are paid for, or moved, in one transaction
_MESSAGES: Final[Mapping[EndReason, str]] = {
    EndReason.RELEASED: "You gave this lease back.",
    EndReason.EXPIRED: "This lease reached the end it was sold with.",
    EndReason.RECLAIMED: "An internal job needs these GPUs; save your work now.",
    EndReason.CREDIT_EXHAUSTED: "The wallet could not pay for the next minute.",
    EndReason.SHUTDOWN: "The operator is stopping this Sublet.",
}


def advance(
    lease: Lease,
    *,
    db: Database,
    engine: Engine,
    clock: Clock,
    notice_url: str | None = None,
    tunnel_url: str | None = None,
) -> tuple[Lease, Observation]:
    """Take one lease as many steps as the present allows.

    The engine is called between short transactions, never inside one. Its calls are safe to
    repeat, so dying half way costs a repeat and nothing else.

    Returns:
        the lease as it is now, and what the engine showed last.

    Raises:
        Conflict: another worker moved the lease first; the next pass will see it.
        Unavailable: the engine or the database did not answer.
    """
    while True:
        # Asked before the clock, so that "running" holds for every instant until `now`.
        seen = engine.observe(lease.id)
        now = clock.now()
        match decide(lease, seen, now):
            case Move() as move:
                lease = _move(lease, move, db=db, now=now)
                if move.to is State.RUNNING:
                    # It may have run for longer than its first minute while nobody looked. It
                    # is paid for first; what comes next is decided then.
                    return lease, seen
            case Start():
                lease, started = _start(
                    lease, db=db, engine=engine, now=now, notice_url=notice_url,
                    tunnel_url=tunnel_url,
                )  # fmt: skip
                if not started:
                    return lease, seen
            case Stop():
                failpoint("lease.stop.before_engine")
                engine.stop(lease.id, notice=notice_of(lease))
                failpoint("lease.stop.after_engine")
                return lease, seen
            case None:
                return lease, seen


def move_together(
    leases: Sequence[Lease], *, db: Database, engine: Engine, clock: Clock
) -> list[Lease]:
    """Make the next move of all leases that have one, hundreds in one transaction.

    Of those that come up, drain or end; what runs, or begins to, is moved by `advance`, after it
    was paid for. Thousands that must go have their notice the sooner.

    Returns:
        the leases in the order given, as they are now. One that somebody else moved is as it was.

    Raises:
        Unavailable: the database did not answer.
    """
    moved: dict[LeaseId, Lease] = {}
    going = [one for one in leases if one.state is not State.RUNNING or one.release_asked]
    for begin in range(0, len(going), _TOGETHER):
        those = {}
        for lease in going[begin : begin + _TOGETHER]:
            try:
                seen = engine.observe(lease.id)
            except Unavailable:  # told when its own turn comes
                continue
            now = clock.now()
            move = decide(lease, seen, now)
            if isinstance(move, Move) and move.to is not State.RUNNING:
                those[lease.id] = (lease, lease.move(move))
        if not those:
            continue
        with db.transaction("leases.move_together") as tx:
            saved = store.save_all(tx, [to for _, to in those.values()], now=clock.now())
        for before, lease in those.values():
            if lease.id in saved:
                moved[lease.id] = lease
                _log_move(before, lease)
    return [moved.get(lease.id, lease) for lease in leases]


def _log_move(before: Lease, lease: Lease) -> None:
    log.info(
        "lease.moved",
        extra={
            "lease": lease.id,
            "from": before.state,
            "to": lease.state,
            "reason": lease.end_reason,
        },
    )


def notice_of(lease: Lease) -> Notice:
    """Return what a draining lease's workload is told."""
    assert lease.end_reason is not None
    assert lease.stops_at is not None
    return Notice(
        reason=lease.end_reason,
        message=_MESSAGES.get(lease.end_reason, "This lease is ending."),
        noticed_at=lease.noticed_at or lease.since,
        stops_at=lease.stops_at,
    )


def _move(lease: Lease, move: Move, *, db: Database, now: datetime) -> Lease:
    moved = lease.move(move)
    if move.to is State.RUNNING:
        assert moved.running_at is not None
        until = moved.until  # of a window, which pays for it
        if moved.reservation_id is None:
            until = blocks.paid_until(moved, blocks=1, running_at=moved.running_at)
        moved = replace(moved, paid_until=until)
    with db.transaction() as tx:
        store.save(tx, moved, now=now)
    _log_move(lease, moved)
    return moved


def _start(
    lease: Lease,
    *,
    db: Database,
    engine: Engine,
    now: datetime,
    notice_url: str | None,
    tunnel_url: str | None,
) -> tuple[Lease, bool]:
    with db.transaction() as tx:
        spec = store.get_spec(tx, lease.id)
    workload = Workload(
        id=lease.id,
        gpu_model=lease.pool,
        gpus=lease.gpus,
        command=spec.command,
        environment=spec.environment,
        files=spec.files,
        sandboxed=spec.sandboxed,
        network=spec.network,
        memory_bytes=spec.memory_bytes,
        processes=spec.processes,
        notice_url=notice_url,
        image=spec.image,
        window=lease.reservation_id,
        tunnel_url=tunnel_url if spec.interactive else None,
        exclusive=lease.exclusive,
    )
    # Should we die before we see it run, it must not run on for longer than it is paid.
    fence = now + timedelta(seconds=blocks.block_seconds(lease, 0)) + lease.notice
    try:
        failpoint("lease.start.before_engine")
        started = engine.start(workload, deadline=fence)
        failpoint("lease.start.after_engine")
        return lease, started
    except (Invalid, Refused) as error:
        move = Move(to=State.DRAINING, at=now, reason=EndReason.START_FAILED, detail=str(error))
        return _move(lease, move, db=db, now=now), True


def pay_ahead(leases: Sequence[Lease], *, db: Database, now: datetime) -> list[Lease]:
    """Hold the next minutes of running leases until `now` and a little more is paid for.

    Many are paid for in one transaction. Unpaid is no error here: a lease then ends where its
    money does.

    Returns:
        the leases, in the order given, each with until when it is paid.
    """
    paid = {lease.id: lease for lease in leases}
    due = [lease for lease in leases if runs_out(lease, now)]
    while due:
        some, due = due[:_TOGETHER], due[_TOGETHER:]
        with db.transaction() as tx:
            until = blocks.hold_next(tx, some, now=now)
            failpoint("lease.pay_ahead.held")
            blocks.extend_paid(tx, until)
        for lease in some:
            if lease.id not in until:
                log.info("lease.unpaid", extra={"lease": lease.id})
                continue
            paid[lease.id] = replace(lease, paid_until=until[lease.id])
            if runs_out(paid[lease.id], now):  # nobody looked for more than a minute
                due.append(paid[lease.id])
    return [paid[lease.id] for lease in leases]


def runs_out(lease: Lease, now: datetime) -> bool:
    """Say whether it is time to hold the next minute of a lease."""
    return (
        lease.state is State.RUNNING
        and lease.paid_until is not None
        and lease.ends_at is not None
        and lease.paid_until < lease.ends_at
        and now >= lease.paid_until - blocks.AHEAD
        # Past its fence the engine has ended it, or its clock and ours do not agree: nothing
        # is sold of time that nobody can have had.
        and now < lease.paid_until + lease.notice
    )


def fence_of(lease: Lease) -> datetime | None:
    """Return when the engine itself must kill a running lease, whatever becomes of us."""
    if lease.state is not State.RUNNING or lease.paid_until is None:
        return None
    return lease.paid_until + lease.notice
