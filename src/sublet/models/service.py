"""Keeping deployments served: a replica on a lease while there is surplus for it."""

import http.client
import logging
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import NotFound, Refused
from sublet.core.ids import new_id
from sublet.core.net import free_port
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import admission
from sublet.leases import service as leases
from sublet.leases import store as lease_store
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.service import LONGEST, Request
from sublet.leases.store import Spec
from sublet.models import catalogue, store
from sublet.models.deployment import Deployment, Replica, ReplicaState
from sublet.models.replica.recipe import Recipe
from sublet.models.scaling import Load, Scale, scale
from sublet.models.tuning import store as tunings
from sublet.planner.surplus import sellable_gpus
from sublet.tenants.tenant import Tenant

log = logging.getLogger(__name__)

_PROBE_SECONDS: Final = 0.5
# After a replica that did not come up, wait before the next: most causes do not go by themselves.
_RETRY_AFTER: Final = timedelta(seconds=10)
_SERVING: Final = frozenset({ReplicaState.STARTING, ReplicaState.READY})
RETIRED: Final = "retired"  # one too many: it goes once it has nothing to do
_LONGEST_WAIT: Final = timedelta(minutes=10)  # for a request of a replica that is retired
_UNHEARD: Final = timedelta(seconds=2)  # gateways look several times a second
_HEARD: Final = timedelta(seconds=10)  # gateways say every second what they have
_ADAPT_EVERY: Final = timedelta(seconds=0.5)
_FAILURES: Final = frozenset({EndReason.START_FAILED, EndReason.NODE_LOST, EndReason.COMPLETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What replicas need to know of this instance."""

    house: Tenant
    weights: Path  # assembled weights are kept here
    artefacts: Path | None = None  # and sealed ones here
    keys_url: str | None = None  # where replicas ask for the keys of these
    elsewhere: bool = False  # replicas run on other machines, and gateways reach them there


def missing(tx: Tx, deployment: Deployment) -> str | None:
    """Say what this machine lacks to serve a deployment, or None."""
    try:
        return catalogue.recipe_of(tx, deployment).missing()
    except NotFound as error:
        return str(error)


def pool_with_room(
    tx: Tx, recipe: Recipe, jobs: Sequence[InternalJob], *, now: datetime
) -> str | None:
    """Return a pool that has slots for a recipe just now, or None."""
    for pool in fleet.list_pools(tx):
        if pool.name == "cpu" and not recipe.cpu:
            continue
        if sellable_gpus(leases.pressure_of(tx, pool, jobs, now=now)) >= recipe.gpus:
            return pool.name
    return None


class _Adapters(msgspec.Struct, frozen=True):
    adapters: list[UUID]


class _Health(msgspec.Struct, frozen=True):
    running: int = 0
    waiting: int = 0


class Replicas:
    """Takes every deployment one step towards what it should be, at each pass."""

    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        hosting: Hosting,
        address_of: Callable[[UUID], str | None] = lambda _: None,
    ) -> None:
        """`address_of` says where the lease of a replica runs; None: on this machine."""
        self._address_of = address_of
        self._db = db
        self._clock = clock
        self._hosting = hosting
        self._worths: Mapping[str, int | None] = {}
        self._adapted: dict[UUID, datetime] = {}  # not asked again before
        self._told: dict[str, str] = {}  # why a deployment has no replica, said once

    def reconcile(self, leases_by_id: Mapping[UUID, Lease], jobs: Sequence[InternalJob]) -> None:
        """Follow each replica's lease, probe what loads, and bring each deployment to its target.

        Raises:
            Unavailable: the database did not answer.
        """
        now = self._clock.now()
        with self._db.transaction() as tx:
            deployments = store.list_deployments(tx)
            replicas = store.list_live_replicas(tx)
            loads = store.list_loads(tx, since=now - _HEARD)
            learnt = tunings.list_adapters(tx)
        followed = [self._follow(one, leases_by_id.get(one.id), now=now) for one in replicas]
        by_deployment: dict[str, list[Replica]] = defaultdict(list)
        for replica in followed:
            by_deployment[replica.deployment].append(replica)
        for deployment in deployments:
            ours = by_deployment[deployment.name]
            serving = [one for one in ours if one.state in _SERVING]
            target = self._scale(deployment, loads.get(deployment.name, Load()), serving, now=now)
            if len(serving) < target:
                self._start(deployment, jobs, now=now)
            elif len(serving) > target:
                # The one that came last has the least in its caches, or is not even up.
                self._retire(max(serving, key=lambda one: (one.ready_at is None, one.since)), now)
            wanted = frozenset(one.artefact_id for one in learnt if one.base == deployment.name)
            for replica in ours:
                if replica.state is ReplicaState.READY and replica.adapters != wanted:
                    self._adapt(replica, now=now)
                if replica.state is ReplicaState.DRAINING and replica.detail == RETIRED:
                    self._let_go(replica, leases_by_id.get(replica.id), now=now)

    def _scale(
        self, deployment: Deployment, load: Load, serving: Sequence[Replica], *, now: datetime
    ) -> int:
        """Return how many replicas a deployment shall have, and keep it where that is news."""
        if not deployment.wanted:
            return 0
        before = Scale(target=deployment.target, fewer_since=deployment.fewer_since)
        ready = sum(replica.state is ReplicaState.READY for replica in serving)
        after = scale(
            before,
            deployment.scaling,
            load,
            ready=ready,
            now=now,
            worth=self._worths.get(deployment.name),
        )
        if after != before:
            with self._db.transaction() as tx:
                store.set_target(tx, deployment.name, after.target, fewer_since=after.fewer_since)
            if after.target != before.target:
                log.info(
                    "deployment.scaled",
                    extra={
                        "deployment": deployment.name,
                        "from": before.target,
                        "to": after.target,
                        "outstanding_tokens": load.outstanding_tokens,
                        "first_token_ms": load.first_token_ms,
                    },
                )
        return after.target

    def weigh(self, worths: Mapping[str, int | None]) -> None:
        """Hear how many replicas of each deployment earn more than leases would pay."""
        self._worths = worths

    def _retire(self, replica: Replica, now: datetime) -> None:
        """Send it no more requests. It goes when it has finished those that it has."""
        self._set(replica, ReplicaState.DRAINING, detail=RETIRED, now=now)

    def _let_go(self, replica: Replica, lease: Lease | None, *, now: datetime) -> None:
        if lease is None or lease.release_asked is not None or lease.state is State.DRAINING:
            return
        busy = _running(replica)  # None: it does not answer, so nothing of it is worth waiting for
        if busy and now < replica.since + _LONGEST_WAIT:
            return
        if now < replica.since + _UNHEARD:
            return  # a gateway may not have heard of it yet, and send it one more
        with self._db.transaction() as tx:
            lease_store.ask_release(tx, LeaseId(replica.id), EndReason.RELEASED)

    def _adapt(self, replica: Replica, *, now: datetime) -> None:
        """Let a replica look which adapters it should have, and note which it has."""
        if now < self._adapted.get(replica.id, now):
            return
        self._adapted = {one: until for one, until in self._adapted.items() if until > now} | {
            replica.id: now + _ADAPT_EVERY
        }
        said = _exchange(replica, "PUT", "/adapters")
        if said is None:
            return
        adapters = msgspec.json.decode(said, type=_Adapters).adapters
        if frozenset(adapters) != replica.adapters:
            with self._db.transaction() as tx:
                tunings.set_replica_adapters(tx, replica.id, adapters)
            log.info("replica.adapters", extra={"replica": replica.id, "adapters": len(adapters)})

    def _follow(self, replica: Replica, lease: Lease | None, *, now: datetime) -> Replica:
        """Move a replica to where its lease is, and return it; `lease` is None once it has ended."""
        if lease is None:
            with self._db.transaction() as tx:
                ended = lease_store.get(tx, LeaseId(replica.id))
            if ended.state is State.ENDED:
                return self._set(replica, ReplicaState.GONE, detail=ended.end_reason, now=now)
        elif lease.state is State.DRAINING or lease.release_asked is not None:
            # Already when its release is asked for: a request sent now might be cut.
            reason = lease.end_reason or lease.release_asked
            return self._set(replica, ReplicaState.DRAINING, detail=reason, now=now)
        elif lease.state is State.RUNNING and replica.state is ReplicaState.STARTING:
            there = self._placed(replica)
            if _running(there) is not None:
                return self._set(there, ReplicaState.READY, detail=None, now=now)
        return replica

    def _placed(self, replica: Replica) -> Replica:
        """Return a replica with the address of the node that it was given, and note it."""
        host = self._address_of(replica.id) if self._hosting.elsewhere else None
        if host is None:
            return replica
        url = f"http://{f'[{host}]' if ':' in host else host}:{urlsplit(replica.url).port}"
        if url == replica.url:
            return replica
        with self._db.transaction() as tx:
            store.set_replica_url(tx, replica.id, url)
        return replace(replica, url=url)

    def _set(
        self, replica: Replica, state: ReplicaState, *, detail: str | None, now: datetime
    ) -> Replica:
        if replica.state is state:
            return replica
        with self._db.transaction() as tx:
            store.set_replica_state(tx, replica.id, state, detail=detail, now=now)
        log.info(
            "replica.moved",
            extra={
                "replica": replica.id,
                "deployment": replica.deployment,
                "to": state,
                "reason": detail,
            },
        )
        return replace(replica, state=state, detail=detail, since=now)

    def _start(self, deployment: Deployment, jobs: Sequence[InternalJob], *, now: datetime) -> None:
        with self._db.transaction() as tx:
            lack = missing(tx, deployment)
        if lack is not None:
            self._tell(deployment, lack)
            return
        with self._db.transaction() as tx:
            recipe = catalogue.recipe_of(tx, deployment)
            last = store.get_last_replica(tx, deployment.name)
            if last is not None and last.detail in _FAILURES and now < last.since + _RETRY_AFTER:
                return
            pool = pool_with_room(tx, recipe, jobs, now=now)
        if pool is None:
            self._tell(deployment, "waiting for free slots")
            return
        port = free_port()
        replica = Replica(
            id=new_id(),
            deployment=deployment.name,
            url=f"http://127.0.0.1:{port}",
            secret=secrets.token_urlsafe(24),
            state=ReplicaState.STARTING,
            detail=None,
            since=now,
        )
        command = [
            sys.executable, "-m", "sublet.models.replica", "--port", str(port),
            "--weights", str(self._hosting.weights),
        ]  # fmt: skip
        if self._hosting.artefacts is not None and self._hosting.keys_url is not None:
            command += ["--artefacts", str(self._hosting.artefacts)]
            command += ["--adapters-url", f"{self._hosting.keys_url}/{replica.id}/adapters"]
        if recipe.sealed is not None:
            command += ["--weights-key-url", f"{self._hosting.keys_url}/{replica.id}/weights-key"]
        if self._hosting.elsewhere:
            command += ["--host", "0.0.0.0"]  # noqa: S104 -- which address, only its node knows
        request = Request(
            id=LeaseId(replica.id),
            pool=pool,
            gpus=recipe.gpus,
            tier=deployment.scaling.tier,
            max_duration=LONGEST,
            spec=Spec(
                command=command,
                environment={
                    "SUBLET_REPLICA_KEY": replica.secret,
                    "SUBLET_REPLICA_RECIPE": msgspec.json.encode(recipe).decode(),
                },
                sandboxed=False,
            ),
        )
        try:
            with self._db.transaction() as tx:
                admission.admit(tx, self._hosting.house, request, jobs=jobs, now=now)
                store.add_replica(tx, replica)
        except Refused as error:
            self._tell(deployment, str(error))
            return
        self._told.pop(deployment.name, None)

    def _tell(self, deployment: Deployment, why: str) -> None:
        if self._told.get(deployment.name) != why:
            self._told[deployment.name] = why
            log.info("deployment.waiting", extra={"deployment": deployment.name, "reason": why})

    def why_not(self, name: str) -> str | None:
        """Say why a deployment has no replica, as far as this process knows."""
        return self._told.get(name)


def _running(replica: Replica) -> int | None:
    """Return how many requests a replica has; None: it is not up."""
    said = _exchange(replica, "GET", "/health")
    if said is None:
        return None
    try:
        health = msgspec.json.decode(said, type=_Health)
    except msgspec.DecodeError:
        return None
    return health.running + health.waiting


def _exchange(replica: Replica, method: str, path: str) -> bytes | None:
    """Return what a replica says; None: it does not, or refuses."""
    address = urlsplit(replica.url)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=_PROBE_SECONDS
    )
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {replica.secret}"})
        answer = connection.getresponse()
        return answer.read() if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
