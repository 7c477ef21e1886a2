"""The reconcile loop: looks at the cluster and the record, and takes everything one step on.

It decides from the present alone, so it may die anywhere; the next pass, here or in the next
process, goes on. One control plane leads at a time: it holds an advisory lock.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.app import bootstrap
from sublet.app.attention import Attention
from sublet.app.charging import Charging
from sublet.app.leadership import Leadership
from sublet.app.planning import Planning
from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import Conflict, Misconfigured, SubletError, Unavailable
from sublet.core.failpoint import failpoint
from sublet.core.seal import Sealer
from sublet.engine.port import Engine, InternalJob, Phase, Reserving
from sublet.fleet import store as fleet
from sublet.fleet.demand import Sampler
from sublet.fleet.pool import Pool, gpus_by_pool
from sublet.fleet.queue import Queue
from sublet.fleet.topology import Topology, topologies
from sublet.leases import advancing, booking, contracts, deliveries, reservations, resume
from sublet.leases import service as leases
from sublet.leases import store as lease_store
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.live import Live
from sublet.leases.reclaim import Losses
from sublet.leases.reservation import as_window
from sublet.leases.waits import InternalWaits
from sublet.ledger import store as ledger
from sublet.metering import resale_meter, reservation_meter
from sublet.models.service import Replicas

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 0.1
_SWEEP_EVERY: Final = timedelta(seconds=1)
_SEAL_EVERY: Final = timedelta(minutes=1)
_LOOK_AT_NODES_EVERY: Final = timedelta(seconds=5)
_AWAY: Final = 3  # so many leases in a row that cannot be moved


class Control:
    """One pass at a time over the fleet, its leases, replicas and holds."""

    def __init__(
        self,
        *,
        db: Database,
        engine: Engine,
        reserving: Reserving | None = None,
        clock: Clock,
        first_notice_seconds: int,
        replicas: Replicas | None,
        notice_url: Callable[[UUID], str] | None = None,
        tunnel_url: Callable[[UUID], str] | None = None,
        planning: Planning | None = None,
        waits: InternalWaits | None = None,
    ) -> None:
        self._db = db
        self._engine = engine
        self._reserving = reserving
        self._clock = clock
        self._first_notice_seconds = first_notice_seconds
        self._replicas = replicas
        self._notice_url = notice_url
        self._tunnel_url = tunnel_url
        self._planning = planning
        self._waits = waits or InternalWaits()
        self._sampler = Sampler()
        self._live = Live()
        self._attention = Attention(engine)
        self._queue = Queue()
        self._watched: dict[str, tuple[Sequence[InternalJob], int, int]] = {}  # as last looked at
        # With which leases, jobs, pools and windows nobody had to go.
        self._suffices: tuple[object, ...] | None = None
        self._recorded: dict[UUID, InternalJob] = {}
        self._recorded_jobs: Sequence[InternalJob] = ()
        self._charging = Charging(db, clock)
        self._fences: dict[UUID, datetime] = {}
        self._seen_until: list[tuple[Lease, datetime]] = []  # in this pass, each until when
        self._topologies: Mapping[str, Topology] = {}  # of each pool
        self._placed: dict[UUID, Sequence[str]] = {}  # in this pass, the nodes of each lease
        self._swept_at: datetime | None = None
        self._sealer = Sealer(db)
        self._sealed_at: datetime | None = None
        self._looked_at: datetime | None = None
        self.stopping = False  # set once everything must leave

    def tick(self) -> None:
        """Take everything one step on.

        Raises:
            Unavailable: the engine or the database did not answer; try again later.
        """
        if not self.stopping:  # freed slots are for nobody then
            try:
                self._engine.tick()
            except Unavailable as error:  # what runs must be looked after all the same
                log.warning("engine.unavailable", extra={"detail": str(error)})
        try:
            jobs = list(self._engine.internal_jobs())
        except Unavailable:
            self._carry_on()
            raise
        self._queue = self._queue.next(jobs)
        news = self._observe_fleet(jobs)
        with self._db.transaction() as tx:
            live = self._live.look(tx)
            pools = fleet.list_pools(tx)
            unsettled = self._charging.list_unsettled(tx)
            windows = reservations.any_open(tx)
            aside = booking.aside(tx, pools, now=self._clock.now()) if windows else {}
        self._reserve(windows=windows)
        now = self._clock.now()
        self._watch_queue(pools, now)
        needing, odd = self._attention.look(live, now=now)
        leaving = (
            [lease.id for lease in live]
            if self.stopping
            else self._must_go(live, pools, aside, odd=odd, now=now)
        )
        if leaving:
            needing = self._ask_to_leave(leaving)
        self._take_all_on(self._paid(needing))
        self._each(unsettled, lambda lease: self._charging.settle(lease, seen_until=now))
        if windows:
            deliveries.note(
                self._db, pools=pools, demands=self._queue.demands, now=self._clock.now()
            )
            contracts.renew_due(self._db, now=self._clock.now())
            reservation_meter.settle_windows(self._db, now=self._clock.now())
            reservation_meter.close_contracts(self._db, now=self._clock.now())
            resale_meter.pay_shares(self._db, now=self._clock.now())
        if not self.stopping:
            back = resume.resume(self._db, jobs=jobs, now=self._clock.now())
            if windows:
                back += booking.start_due(self._db, jobs=jobs, now=self._clock.now())
            self._take_all_on(back)
        self._record_starts(jobs, news)
        if self._replicas is not None and not self.stopping:
            with self._db.transaction() as tx:
                self._live.look(tx)
            self._replicas.reconcile(self._live.by_id, jobs)
        self._sweep_holds(now)
        self._seal(now)
        self._sample(pools, now)

    def _must_go(
        self,
        live: Sequence[Lease],
        pools: Sequence[Pool],
        aside: Mapping[str, int],
        *,
        odd: bool,
        now: datetime,
    ) -> list[LeaseId]:
        """Say who must give way; nobody, for as long as all is as when nobody had to."""
        stands = (self._live.shape, self._queue, pools, aside)
        if not odd and stands == self._suffices:
            return []
        chosen = leases.reclaim_all(
            self._seen(live),
            pools=pools,
            demands=self._queue.demands,
            aside=aside,
            losses=lambda: self._losses(live, now),
            now=now,
        )
        # For a window nobody goes who is firm, and that changes with time.
        anew = odd or chosen or any(aside.values())
        self._suffices = None if anew else stands
        return chosen

    def _ask_to_leave(self, leaving: Sequence[LeaseId]) -> list[Lease]:
        """Note who must leave, and return who needs anything: those that are leaving first."""
        reason = EndReason.SHUTDOWN if self.stopping else EndReason.RECLAIMED
        with self._db.transaction("control.reclaim") as tx:
            asked = lease_store.ask_all(tx, leaving, reason)
        for lease_id in asked:
            log.info("lease.release_asked", extra={"lease": lease_id, "reason": reason})
        with self._db.transaction() as tx:
            live = self._live.look(tx)
        needing, _ = self._attention.look(live, now=self._clock.now())
        return sorted(needing, key=lambda lease: lease.release_asked is None)

    def _paid(self, live: Sequence[Lease]) -> list[Lease]:
        """Return the leases, with the next minute held of those that run and that it is time for.

        Before anything is decided: when we were away at the end of the paid time, a wallet that
        can pay must not lose its lease for it.
        """
        now = self._clock.now()
        due = [lease for lease in live if advancing.runs_out(lease, now) and self._runs(lease)]
        if not due:
            return list(live)
        paid = {lease.id: lease for lease in advancing.pay_ahead(due, db=self._db, now=now)}
        return [paid.get(lease.id, lease) for lease in live]

    def _runs(self, lease: Lease) -> bool:
        try:
            return self._engine.observe(lease.id).phase is Phase.RUNNING
        except Unavailable:  # told when its own turn comes
            return False

    def _carry_on(self) -> None:
        """Keep paid leases going while the cluster does not answer: it runs them all the same.

        Nothing else is decided without it. What is held now is settled by what it tells later.
        """
        with self._db.transaction() as tx:
            live = lease_store.list_live(tx)
        going_on = [
            lease for lease in live if lease.state is State.RUNNING and lease.release_asked is None
        ]
        for paid in advancing.pay_ahead(going_on, db=self._db, now=self._clock.now()):
            self._fence(paid)

    def _reserve(self, *, windows: bool) -> None:
        """Have the cluster set windows aside, where it can. What it cannot now, it is asked again."""
        if self._reserving is None:
            return
        sold = []
        if windows:
            with self._db.transaction() as tx:
                sold = reservations.list_open(tx)
        now = self._clock.now()
        try:
            self._reserving.reserve([as_window(one) for one in sold if now < one.ends_at])
        except Unavailable as error:
            log.warning("windows.not_reserved", extra={"detail": str(error)})

    def _watch_queue(self, pools: Sequence[Pool], now: datetime) -> None:
        held = self._live.held()
        for pool in pools:
            stands = (self._queue.of(pool.name), pool.gpus, held.get(pool.name, 0))
            before = self._watched.get(pool.name)
            if before is not None and before[0] is stands[0] and before[1:] == stands[1:]:
                continue
            jobs, gpus, leased = self._watched[pool.name] = stands
            self._waits.look(pool.name, jobs, gpus=gpus, leased=leased, now=now)

    def _losses(self, live: Sequence[Lease], now: datetime) -> Mapping[str, Losses]:
        with self._db.transaction() as tx:
            return leases.losses_of(
                tx, live, topologies=self._topologies, placed=self._placed, now=now
            )

    def _seen(self, live: Sequence[Lease]) -> list[Lease]:
        """Return the leases as the engine has them: what is gone holds nothing any more.

        And what the cluster itself told to go is leaving, whether we have noted it or not.
        """
        found = []
        self._placed.clear()
        for lease in live:
            try:
                seen = self._engine.observe(lease.id)
            except Unavailable:  # of one that cannot be reached, what is stored holds
                found.append(lease)
                continue
            if seen.nodes:
                self._placed[lease.id] = seen.nodes
            if lease.state is State.RUNNING and seen.phase in {Phase.EXITED, Phase.LOST}:
                continue
            told = seen.reclaimed_at is not None and lease.release_asked is None
            found.append(replace(lease, release_asked=EndReason.RECLAIMED) if told else lease)
        return found

    def _observe_fleet(self, jobs: list[InternalJob]) -> list[InternalJob]:
        """Note nodes, and what is new of internal jobs but their starts; return what is new."""
        now = self._clock.now()
        if self._looked_at is None or now >= self._looked_at + _LOOK_AT_NODES_EVERY:
            nodes = self._engine.nodes()
            gpus = gpus_by_pool(nodes)
            self._topologies = topologies(nodes)
            with self._db.transaction() as tx:
                fleet.observe_pools(
                    tx, gpus, notice_seconds=self._first_notice_seconds, now=now,
                    node_gpus={
                        pool: there.node_gpus
                        for pool, there in self._topologies.items()
                        if gpus[pool]
                    },
                )  # fmt: skip
                bootstrap.first_prices(tx, list(gpus), now=now)
            self._looked_at = now
        # What ends is recorded before what may start in its place, and starts come last of
        # all: so the record never shows a GPU twice, not even in the middle of a pass.
        recorded = self._recorded
        # Most of a long queue is what it was, often the very same objects.
        if self._recorded_jobs == jobs:
            return []
        news = [job for job in jobs if (one := recorded.get(job.id)) is not job and one != job]
        if news:
            unstarted = [replace(job, started_at=None) for job in news]
            with self._db.transaction() as tx:
                fleet.record_internal_jobs(tx, unstarted, now=now)
        return news

    def _record_starts(self, jobs: list[InternalJob], news: list[InternalJob]) -> None:
        if started := [job for job in news if job.started_at is not None]:
            with self._db.transaction() as tx:
                fleet.record_internal_jobs(tx, started, now=self._clock.now())
        if self._recorded_jobs != jobs:
            self._recorded = {job.id: job for job in jobs}
            self._recorded_jobs = jobs

    def _each(self, those: Sequence[Lease], step: Callable[[Lease], None]) -> None:
        """Take each one step on: one lease's trouble must not stop the others.

        Raises:
            Unavailable: of several in a row, so it is not their trouble but ours.
        """
        away = 0
        for lease in those:
            try:
                step(lease)
                away = 0
            except Conflict as error:
                log.info("lease.conflict", extra={"lease": lease.id, "detail": str(error)})
            except Unavailable as error:
                away += 1
                if away == _AWAY:
                    raise
                log.warning("lease.unavailable", extra={"lease": lease.id, "detail": str(error)})
            except SubletError:
                log.exception("lease.failed", extra={"lease": lease.id})

    def _take_all_on(self, those: Sequence[Lease]) -> None:
        """Take each one step on, then charge what they used: notices do not wait for money."""
        self._seen_until.clear()
        those = advancing.move_together(those, db=self._db, engine=self._engine, clock=self._clock)
        self._each(those, self._take_on)
        apart = self._charging.charge(self._seen_until, each=self._each)
        for lease, seen_until in self._seen_until:
            if lease.id not in apart:
                self._attention.rest(lease, seen_until=seen_until)

    def _take_on(self, lease: Lease) -> None:
        url = None if self._notice_url is None else self._notice_url(lease.id)
        tunnel = None if self._tunnel_url is None else self._tunnel_url(lease.id)
        asked_at = self._clock.now()
        lease, seen = advancing.advance(
            lease, db=self._db, engine=self._engine, clock=self._clock, notice_url=url,
            tunnel_url=tunnel,
        )  # fmt: skip
        self._fence(lease)
        seen_until = min(seen.seen_at or asked_at, asked_at)
        if seen.phase is not Phase.RUNNING:
            seen_until = lease.since
        if lease.state is State.ENDED:
            self._fences.pop(lease.id, None)
            self._live.drop(lease.id)
        self._seen_until.append((lease, seen_until))

    def _fence(self, lease: Lease) -> None:
        fence = advancing.fence_of(lease)
        if fence is not None and self._fences.get(lease.id) != fence:
            failpoint("lease.fence.before_engine")
            self._engine.extend(lease.id, deadline=fence)
            failpoint("lease.fence.after_engine")
            self._fences[lease.id] = fence

    def _sweep_holds(self, now: datetime) -> None:
        if self._swept_at is not None and now < self._swept_at + _SWEEP_EVERY:
            return
        with self._db.transaction("control.sweep_holds") as tx:
            expired = ledger.expire(tx, now=now)
        for hold_id in expired:
            log.warning("hold.expired", extra={"hold": hold_id})
        self._swept_at = now

    def _seal(self, now: datetime) -> None:
        """Once a minute begin to seal what is new, then go on with it a run of rows a pass."""
        if self._sealed_at is None or now >= self._sealed_at + _SEAL_EVERY:
            if waiting := self._sealer.waiting:  # somebody has been writing for a minute
                log.warning("records.not_sealed", extra={"tables": waiting})
            self._sealer.look()
            self._sealed_at = now
        if self._sealer.waiting:
            self._sealer.step(now=now)

    def forget(self) -> None:
        """Take nothing for known: somebody else led meanwhile."""
        self._live.forget()
        self._attention.forget()
        self._suffices = None
        self._recorded.clear()
        self._recorded_jobs = ()
        self._fences.clear()
        self._charging.forget()
        self._looked_at = None

    def _sample(self, pools: list[Pool], now: datetime) -> None:
        """Keep how the pools stood, and let the planner learn from it."""
        samples = self._sampler.look(
            {pool.name: pool.gpus for pool in pools}, self._queue.demands, now=now
        )
        if samples:
            with self._db.transaction() as tx:
                fleet.keep_samples(tx, samples)
        if self._planning is not None:
            self._planning.tick()

    def idle(self) -> bool:
        """Return whether no lease is live."""
        with self._db.transaction() as tx:
            return not lease_store.list_live(tx)


class Loop(threading.Thread):
    """Runs passes until it is told to stop and everything has left."""

    def __init__(
        self,
        control: Control,
        *,
        leadership: Leadership,
        drained: Callable[[], bool],
        when_done: Callable[[], None],
    ) -> None:
        super().__init__(name="control-loop", daemon=True)
        self._control = control
        self._leadership = leadership
        self._drained = drained
        self._when_done = when_done
        self._wake = threading.Event()
        self._told_to_stop = False
        self._epoch = 0

    def run(self) -> None:
        try:
            while not self._pass():
                self._wake.wait(EVERY_SECONDS)
                self._wake.clear()
        finally:
            self._leadership.release()
            self._when_done()

    def wake(self) -> None:
        """Do the next pass now: somebody changed something."""
        self._wake.set()

    def stop(self) -> None:
        """End after this pass. Leases run on, within what is paid."""
        self._told_to_stop = True
        self._wake.set()

    def drain(self) -> None:
        """End once everything has left."""
        self._control.stopping = True
        self._wake.set()

    def _pass(self) -> bool:
        """Do one pass; True when we were told to end and nothing is left to do."""
        try:
            if self._told_to_stop:
                return True
            if not self._leadership.hold():
                return self._control.stopping
            if self._leadership.epoch != self._epoch:
                self._epoch = self._leadership.epoch
                self._control.forget()
            self._control.tick()
            return self._control.stopping and self._control.idle() and self._drained()
        except Unavailable as error:
            log.warning("control.unavailable", extra={"detail": str(error)})
        except Misconfigured as error:
            # Another control plane led meanwhile, on an engine of its own: we must not go on.
            log.error("control.must_end", extra={"detail": str(error)})  # noqa: TRY400 -- no bug
            return True
        except Exception:
            # A bug must not end the loop: leases would run on unwatched. The fences hold.
            log.exception("control.failed")
        return False
