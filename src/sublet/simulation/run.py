"""A fleet from start to end, five minutes at a time, by one set of rules.

Each step: leases end; nodes fail; internal jobs get their GPUs, and take back what they lack;
reservations start; the next step's money is held; evicted leases come back; requests are
answered in the order in which they came. Then the laws are checked.

Within a step everything is to the second: requests, ends, notices and the money for them.
"""

from collections import defaultdict, deque
from dataclasses import replace
from hashlib import sha256

import numpy as np

from sublet.planner.surplus import Pressure, missing_gpus
from sublet.simulation.admission import Admission, Again
from sublet.simulation.auction import hold_auction
from sublet.simulation.demand import DAY_STEPS, World
from sublet.simulation.laws import Laws
from sublet.simulation.money import HOUR, Till
from sublet.simulation.outcome import Outcome, Tally
from sublet.simulation.planning import Plans, Told
from sublet.simulation.pricing import Tariff
from sublet.simulation.requests import Requests
from sublet.simulation.rules import RULES
from sublet.simulation.scenario import CONTRACT, INTERRUPTIBLE, STEP, Scenario
from sublet.simulation.table import COLUMNS, DRAINING, ENDED, NEVER, RUNNING, Ints, Leases
from sublet.simulation.victims import Losses, Turns, choose, work_lost

_LEAVES_EARLY = 0.2  # a tenant's command uses at least so much of its notice


class Simulation:
    """One run. `run` plays it; `outcome` says what came of it."""

    def __init__(
        self,
        scenario: Scenario,
        world: World,
        requests: Requests,
        plans: Plans | None,
        *,
        seed: int,
        keep: bool = False,
    ) -> None:
        conduct = scenario.conduct
        self.rules = RULES[conduct.rules]
        self.scenario, self.world, self.requests, self.plans = scenario, world, requests, plans
        self.leases, self.till, self.laws = (
            Leases(),
            Till(scenario, by_terms=self.rules.credits),
            Laws(),
        )
        pools = len(scenario.pools)
        self.tally = Tally(pools=pools, steps=world.steps - world.first)
        how = self.rules.pricing or conduct.pricing
        self.tariff = Tariff(scenario, world, requests, plans, how=how)
        self.admission = Admission(self)
        self.turns = Turns()
        self.dice = np.random.default_rng([seed, 3])
        self.notice = np.array([pool.notice for pool in scenario.pools], dtype=np.int64)
        self.internal = np.zeros(pools, dtype=np.int64)  # GPUs that internal jobs hold
        self.pending = np.zeros(pools, dtype=np.int64)  # wait for, and would fit
        self._healthy = world.total[:, world.first].copy()
        self._waits: dict[int, deque[list[int]]] = defaultdict(deque)  # [since, gpus]
        self._wanted: deque[Ints] = deque(maxlen=2 + int(self.notice.max()) // STEP + 1)
        self._wounded: deque[Ints] = deque(maxlen=self._wanted.maxlen)
        self._picked = np.zeros(pools, dtype=np.int64)  # internal GPU-seconds of leavers' GPUs
        self._idle = np.zeros(pools, dtype=np.int64)  # GPU-seconds of the last step
        self.standing: list[int] = []  # requests whose bids stand, in an auction
        self.next_rates: dict[int, int] = {}  # by row: from the next block on
        self.history = sha256()
        self.kept: list[Ints] | None = [] if keep else None  # leases that ended, as rows of columns

    def run(self, told: Told = lambda _what, _share: None) -> Outcome:
        steps = self.world.steps - self.world.first
        for step in range(steps):
            self._step(step)
            if step % DAY_STEPS == 0:
                told("selling", step / steps)
        self._close(steps)
        return Outcome.of(self)

    def now(self, step: int) -> int:
        """Return the instant at which a step starts, in seconds since the epoch."""
        return self.world.start + (self.world.first + step) * STEP

    def _step(self, step: int) -> None:
        now, at = self.now(step), self.world.first + step
        healthy, wanted = self.world.total[:, at], self.world.demand[:, at]
        self._finish(now)
        if step:
            self._account(step - 1, now)
        wounded = self._fail(healthy, now)
        self._forget_ended()
        self.admission.deals.recall(now)
        self._serve_internal(healthy, wanted, step, now)
        self._wanted.append(np.minimum(wanted, healthy))
        self._wounded.append(wounded)
        if step % DAY_STEPS == 0 and step:
            self.till.refill()
        self._hold_next(now)
        self.tariff.renew(step, now=now, leases=self.leases, promised=self.admission.promised)
        self.admission.open(step, now=now, healthy=healthy)
        if self.rules.auction:
            hold_auction(self, step, now=now)
        else:
            self.admission.answer(step, now=now)
        self._check(healthy, step)
        self._healthy = healthy

    def _finish(self, now: int) -> None:
        """Let those end whose time is over, or whose notice is."""
        leases = self.leases
        rows = leases.rows(RUNNING)
        over = rows[leases.ends_at[rows] <= now]
        leases.stopped_at[over] = leases.ends_at[over]
        leases.stops_at[over] = leases.ends_at[over]
        leases.move(over, DRAINING)
        self.tally.completed += len(over)
        rows = leases.rows(DRAINING)
        gone = rows[leases.stops_at[rows] <= now]
        leases.move(gone, ENDED)

    def _account(self, step: int, now: int) -> None:
        """Settle the block that is over, and say what every GPU-second of it was used for."""
        leases, pools = self.leases, len(self.notice)
        rows = np.flatnonzero(leases.alive).astype(np.int64)
        seconds = self.till.settle(leases, rows, now=now)
        pool = leases.pool[rows]
        left = np.minimum(leases.stops_at[rows], now) - np.maximum(
            np.minimum(leases.stopped_at[rows], now), now - STEP
        )
        leaving = np.where(leases.stopped_at[rows] < now, np.maximum(left, 0), 0)
        leaving = leaving * leases.gpus[rows]
        sold = np.zeros((pools, 4), dtype=np.int64)
        np.add.at(sold, (pool, leases.tier[rows]), seconds)
        told = np.zeros(pools, dtype=np.int64)
        np.add.at(told, pool, leaving)
        internal = self.internal * STEP + self._picked
        used = internal + sold.sum(axis=1) + told
        healthy = self._healthy * STEP
        self._idle = healthy - used
        self.tally.uses(step, internal=internal, sold=sold, leaving=told, idle=self._idle)

    def _fail(self, healthy: Ints, now: int) -> Ints:
        """End leases whose nodes are gone; returns the failed GPUs that were not leased."""
        leases = self.leases
        lost: Ints = np.maximum(self._healthy - healthy, 0)
        if not lost.any():
            return lost
        rows = leases.rows(RUNNING)
        rows = np.concatenate([rows, leases.rows(DRAINING)])
        for pool in np.flatnonzero(lost).tolist():
            here = rows[leases.pool[rows] == pool]
            occupied = int(leases.gpus[here].sum())
            if not occupied:
                continue
            before, now_healthy = int(self._healthy[pool]), int(healthy[pool])
            hit = int(self.dice.hypergeometric(occupied, before - occupied, int(lost[pool])))
            hit = max(hit, occupied - now_healthy)
            here = self.dice.permutation(here)
            count = int(np.searchsorted(np.cumsum(leases.gpus[here]), hit)) + 1 if hit else 0
            self.leave(here[:count], now, lost=True)
            lost[pool] -= min(hit, int(lost[pool]))
        return lost

    def _forget_ended(self) -> None:
        leases = self.leases
        rows = leases.rows(ENDED)
        if len(rows):
            self.tally.ended_gpu_seconds += int(
                (leases.gpus[rows] * (leases.stopped_at[rows] - leases.running_at[rows])).sum()
            )
            self.tally.served_gpu_seconds += int(leases.served[rows].sum())
            record = np.stack([getattr(leases, name)[rows] for name in COLUMNS], axis=1)
            self.history.update(record.tobytes())
            if self.kept is not None:
                self.kept.append(record)
            leases.remove(rows)

    def _serve_internal(self, healthy: Ints, wanted: Ints, step: int, now: int) -> None:
        """Give internal jobs what is free, and take back what they lack."""
        leases, rules = self.leases, self.rules
        occupied = leases.occupied(len(healthy))
        self.internal = np.minimum(wanted, healthy - occupied)
        self.pending = np.minimum(wanted, healthy) - self.internal
        self._picked = np.zeros(len(healthy), dtype=np.int64)
        needy = (wanted > self.internal) & (occupied > 0)
        soon = self.admission.starting_soon(step)
        if needy.any() or soon:
            running, leaving = leases.rows(RUNNING), leases.rows(DRAINING)
            running = running[np.argsort(leases.pool[running], kind="stable")]
            of_pool = leases.pool[running]
            leaving_gpus = np.bincount(
                leases.pool[leaving], weights=leases.gpus[leaving], minlength=len(healthy)
            ).astype(np.int64)
            for pool in sorted({*np.flatnonzero(needy).tolist(), *soon}):
                low, high = np.searchsorted(of_pool, [pool, pool + 1])
                here = running[low:high]
                pressure = Pressure(
                    gpus=int(healthy[pool]),
                    internal_running=int(self.internal[pool]),
                    internal_pending=int(wanted[pool] - self.internal[pool]),
                    leased=int(occupied[pool]),
                    lendable=True,
                    lending_limit=None,
                )
                going = int(leaving_gpus[pool])
                missing = missing_gpus(pressure, leaving=going)
                if rules.reclaims == "none":
                    missing = 0
                elif rules.reclaims == "share":
                    fair = rules.deserved + (1 - rules.deserved) / 2
                    short = int(fair * pressure.gpus) - pressure.internal_running - going
                    missing = max(min(missing, short), 0)
                victims = (
                    choose(
                        leases,
                        here,
                        gpus=missing,
                        now=now,
                        rules=rules,
                        losses=self._losses(pool, now),
                    )
                    if missing
                    else here[:0]
                )
                if pool in soon and rules.plans:
                    losses = self._losses(pool, now)
                    victims = self._make_room(
                        here, victims, pressure, going, soon[pool], now, losses
                    )
                self.leave(victims, now)
                if len(victims):
                    self.tally.reclaims += 1
        for pool in sorted({*self._waits, *np.flatnonzero(self.pending).tolist()}):
            self._wait(pool, now)

    def _make_room(
        self,
        here: Ints,
        victims: Ints,
        pressure: Pressure,
        going: int,
        gpus: int,
        now: int,
        losses: Losses,
    ) -> Ints:
        """Let interruptible leases go for a reservation that starts before they would have left."""
        leases = self.leases
        free = pressure.gpus - pressure.internal_running - pressure.internal_pending
        free -= pressure.leased - going - int(leases.gpus[victims].sum())
        rest = np.setdiff1d(here, victims)
        rest = rest[leases.tier[rest] == INTERRUPTIBLE]
        if free >= gpus or not len(rest):
            return victims
        more = choose(
            leases, rest, gpus=gpus - max(free, 0), now=now, rules=self.rules, losses=losses
        )
        return np.concatenate([victims, more])

    def _losses(self, pool: int, now: int) -> Losses:
        conduct = self.scenario.conduct
        return Losses(
            lately=self.turns.lately(pool, now),
            node_gpus=max(self.scenario.failures.node_gpus, 1),
            credit_share=conduct.credit_share,
            credit_cap_seconds=round(conduct.credit_cap_hours * HOUR),
        )

    def _wait(self, pool: int, now: int) -> None:
        """Keep account of who waits since when, and hand over GPUs as leavers go."""
        waits = self._waits[pool]
        pending = int(self.pending[pool])
        known = sum(gpus for _, gpus in waits)
        # What is no longer pending was served as this step began, or its job is gone.
        self._hand_over(pool, waits, known - pending, now)
        if pending > known:
            waits.append([now, pending - known])
        leases = self.leases
        rows = leases.rows(DRAINING)
        rows = rows[leases.pool[rows] == pool]
        rows = rows[(leases.stops_at[rows] < now + STEP)]
        for row in rows[np.argsort(leases.stops_at[rows], kind="stable")].tolist():
            moment = int(leases.stops_at[row])
            taken = self._hand_over(pool, waits, int(leases.gpus[row]), moment)
            self._picked[pool] += taken * (now + STEP - moment)
        if not waits:
            del self._waits[pool]

    def _hand_over(self, pool: int, waits: deque[list[int]], gpus: int, moment: int) -> int:
        taken = 0
        while waits and taken < gpus:
            since, count = waits[0]
            some = min(count, gpus - taken)
            self.tally.waited(
                pool, seconds=moment - since, gpus=some, notice=int(self.notice[pool])
            )
            taken += some
            if some == count:
                waits.popleft()
            else:
                waits[0][1] = count - some
        return taken

    def leave(self, rows: Ints, now: int, *, lost: bool = False, market: bool = False) -> None:
        """Tell leases to go: with their notice, or at once where their node is gone."""
        if not len(rows):
            return
        leases, conduct = self.leases, self.scenario.conduct
        told = leases.state[rows] == RUNNING
        fresh = rows[told]
        leases.stopped_at[fresh] = np.maximum(now, leases.running_at[fresh])
        if lost:
            leases.stops_at[rows] = now
        else:
            notice = self.notice[leases.pool[fresh]]
            share = self.dice.uniform(_LEAVES_EARLY, 1.0, len(fresh))
            leases.stops_at[fresh] = now + np.ceil(notice * share).astype(np.int64)
        leases.move(fresh, DRAINING)
        if lost:
            leases.move(rows, ENDED)
        if not len(fresh):
            return
        leases.evictions[fresh] += 1
        if not lost and not market:
            self.turns.note(leases.pool[fresh], leases.tenant[fresh], now)
            self.tally.work_lost += int(work_lost(leases, fresh, now=now).sum())
        self.tally.evicted(leases, fresh, lost=lost, market=market)
        self.tariff.reclaimed(leases.pool[fresh[leases.tier[fresh] == INTERRUPTIBLE]])
        if self.rules.credits:
            cap = round(conduct.credit_cap_hours * HOUR)
            self.till.credit(leases, fresh, now=now, share=conduct.credit_share, cap_seconds=cap)
        for row in fresh.tolist():
            if leases.tier[row] == CONTRACT:
                self.admission.deals.gone(row, now, lost=lost)
            else:
                self._pause(row, now)

    def _pause(self, row: int, now: int) -> None:
        leases, requests = self.leases, self.requests
        number = int(leases.request[row])
        left = int(leases.ends_at[row]) - now
        tier = int(leases.tier[row])
        if self.rules.requeues == "all":
            # It begins anew: what it had done is gone.
            comes_back, left = True, int(leases.ends_at[row] - leases.running_at[row])
        else:
            comes_back = self.rules.requeues == "resumable" and bool(requests.resumable[number])
        if comes_back and left >= 60:
            self.admission.paused.append(
                Again(
                    request=number,
                    pool=int(leases.pool[row]),
                    tier=tier,
                    gpus=int(leases.gpus[row]),
                    tenant=int(leases.tenant[row]),
                    payer=int(leases.payer[row]),
                    payee=int(leases.payee[row]),
                    rate=int(leases.rate[row]),
                    seconds=left,
                    until=NEVER,
                    not_before=now + self.rules.requeue_seconds,
                    evictions=int(leases.evictions[row]),
                    checkpoint=int(leases.checkpoint[row]),
                )
            )

    def _hold_next(self, now: int) -> None:
        leases = self.leases
        for row, rate in self.next_rates.items():
            leases.rate[row] = rate
        self.next_rates.clear()
        rows = leases.rows(RUNNING)
        unpaid = self.till.hold(leases, rows, now=now)
        if len(unpaid):
            leases.stopped_at[unpaid] = now
            leases.stops_at[unpaid] = now + self.notice[leases.pool[unpaid]]
            leases.move(unpaid, DRAINING)
            self.tally.exhausted += len(unpaid)

    def _check(self, healthy: Ints, step: int) -> None:
        laws, leases = self.laws, self.leases
        wanted, wounded = np.stack(self._wanted), np.stack(self._wounded)
        if self.rules.reclaims == "all":
            laws.internal_first(
                self.internal, healthy, wanted, wounded, step=step, notice=self.notice
            )
        laws.no_double_sale(leases, self.internal, healthy, self._idle, step=step)
        laws.money(leases, self.till.book, step=step)
        self.history.update(self.internal.tobytes())

    def _close(self, steps: int) -> None:
        """Settle what runs when the simulation ends."""
        now = self.now(steps)
        self._finish(now)
        self._account(steps - 1, now)
        self.admission.deals.charge(now, end=True)
        leases = self.leases
        running = leases.rows(RUNNING)
        leases.stopped_at[running] = now
        leases.move(running, DRAINING)
        leases.move(leases.rows(DRAINING), ENDED)
        self._forget_ended()
        for pool, waits in self._waits.items():
            self._hand_over(pool, waits, sum(gpus for _, gpus in waits), now)


def with_rules(scenario: Scenario, rules: str, pricing: str | None = None) -> Scenario:
    """Return the scenario under other rules, for the same world and the same requests."""
    conduct = replace(scenario.conduct, rules=rules, pricing=pricing or scenario.conduct.pricing)
    return replace(scenario, conduct=conduct)
