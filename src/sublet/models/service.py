"""Keeping deployments served: a replica on a lease while there is surplus for it."""

import http.client
import logging
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from sublet.core.clock import Clock
from sublet.core.db import Database, Tx
from sublet.core.errors import NotFound, Refused
from sublet.core.ids import new_id
from sublet.core.net import free_port
from sublet.engine.port import InternalJob
from sublet.fleet import store as fleet
from sublet.leases import service as leases
from sublet.leases import store as lease_store
from sublet.leases.lease import EndReason, Lease, LeaseId, State
from sublet.leases.service import LONGEST, Request
from sublet.leases.store import Spec
from sublet.market import store as market
from sublet.market.price import Tier, cache_read_sku, input_sku, output_sku
from sublet.models import store
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState
from sublet.models.replica.recipe import Recipe, load
from sublet.planner.surplus import sellable_gpus
from sublet.tenants.tenant import Tenant

log = logging.getLogger(__name__)

_PROBE_SECONDS: Final = 0.5
# After a replica that did not come up, wait before the next: most causes do not go by themselves.
_RETRY_AFTER: Final = timedelta(seconds=10)
_FAILURES: Final = frozenset({EndReason.START_FAILED, EndReason.NODE_LOST, EndReason.COMPLETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """What replicas need to know of this instance."""

    house: Tenant
    weights: Path  # assembled weights are kept here
    tier: Tier = Tier.INTERRUPTIBLE
    elsewhere: bool = False  # replicas run on other machines, and gateways reach them there


def deploy(tx: Tx, recipe: Recipe, *, now: datetime) -> None:
    """Offer a recipe's model: a deployment, and its list price where it has none yet."""
    deployment = Deployment(
        name=recipe.name, recipe=recipe.name, context_tokens=recipe.context_tokens, wanted=True,
        features=frozenset(map(Feature, recipe.features)),
        temperature=recipe.sampling.temperature, top_p=recipe.sampling.top_p,
    )  # fmt: skip
    store.put_deployment(tx, deployment, now=now)
    prices = {
        input_sku(recipe.name): recipe.price.input,
        # Priced apart from the first day, so that a discount is a price and not a change of code.
        cache_read_sku(recipe.name): recipe.price.input,
        output_sku(recipe.name): recipe.price.output,
    }
    for sku, usd in prices.items():
        if market.find_price(tx, sku) is None:
            market.set_price(tx, sku, market.usd_per_million(usd), now=now)


def missing(deployment: Deployment) -> str | None:
    """Say what this machine lacks to serve a deployment, or None."""
    try:
        return load(deployment.recipe).missing()
    except NotFound as error:
        return str(error)


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
        self._told: dict[str, str] = {}  # why a deployment has no replica, said once

    def reconcile(self, leases_by_id: Mapping[UUID, Lease], jobs: Sequence[InternalJob]) -> None:
        """Follow each replica's lease, probe what loads, start what is wanted and missing.

        Raises:
            Unavailable: the database did not answer.
        """
        now = self._clock.now()
        with self._db.transaction() as tx:
            deployments = store.list_deployments(tx)
            replicas = store.list_live_replicas(tx)
        for replica in replicas:
            self._follow(replica, leases_by_id.get(replica.id), now=now)
        served = {
            replica.deployment
            for replica in replicas
            if replica.state in {ReplicaState.STARTING, ReplicaState.READY}
        }
        for deployment in deployments:
            ours = [replica for replica in replicas if replica.deployment == deployment.name]
            if deployment.wanted and not ours and deployment.name not in served:
                self._start(deployment, jobs, now=now)
            elif not deployment.wanted:
                for replica in ours:
                    with self._db.transaction() as tx:
                        lease_store.ask_release(tx, LeaseId(replica.id), EndReason.RELEASED)

    def _follow(self, replica: Replica, lease: Lease | None, *, now: datetime) -> None:
        """Move a replica to where its lease is; `lease` is None once it has ended."""
        if lease is None:
            with self._db.transaction() as tx:
                ended = lease_store.get(tx, LeaseId(replica.id))
            if ended.state is State.ENDED:
                self._set(replica, ReplicaState.GONE, detail=ended.end_reason, now=now)
        elif lease.state is State.DRAINING or lease.release_asked is not None:
            # Already when its release is asked for: a request sent now might be cut.
            reason = lease.end_reason or lease.release_asked
            self._set(replica, ReplicaState.DRAINING, detail=reason, now=now)
        elif lease.state is State.RUNNING and replica.state is ReplicaState.STARTING:
            there = self._placed(replica)
            if _healthy(there):
                self._set(there, ReplicaState.READY, detail=None, now=now)

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
    ) -> None:
        if replica.state is state:
            return
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

    def _start(self, deployment: Deployment, jobs: Sequence[InternalJob], *, now: datetime) -> None:
        if (lack := missing(deployment)) is not None:
            self._tell(deployment, lack)
            return
        recipe = load(deployment.recipe)
        with self._db.transaction() as tx:
            last = store.get_last_replica(tx, deployment.name)
            if last is not None and last.detail in _FAILURES and now < last.since + _RETRY_AFTER:
                return
            pool = self._pool_with_room(tx, recipe, jobs, now)
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
            sys.executable, "-m", "sublet.models.replica", "--recipe", deployment.recipe,
            "--port", str(port), "--weights", str(self._hosting.weights),
        ]  # fmt: skip
        if self._hosting.elsewhere:
            command += ["--host", "0.0.0.0"]  # noqa: S104 -- which address, only its node knows
        request = Request(
            id=LeaseId(replica.id),
            pool=pool,
            gpus=recipe.gpus,
            tier=self._hosting.tier,
            max_duration=LONGEST,
            spec=Spec(
                command=command,
                environment={"SUBLET_REPLICA_KEY": replica.secret},
                sandboxed=False,
            ),
        )
        try:
            with self._db.transaction() as tx:
                leases.admit(tx, self._hosting.house, request, jobs=jobs, now=now)
                store.add_replica(tx, replica)
        except Refused as error:
            self._tell(deployment, str(error))
            return
        self._told.pop(deployment.name, None)

    def _pool_with_room(
        self, tx: Tx, recipe: Recipe, jobs: Sequence[InternalJob], now: datetime
    ) -> str | None:
        for pool in fleet.list_pools(tx):
            if sellable_gpus(leases.pressure_of(tx, pool, jobs, now=now)) >= recipe.gpus:
                return pool.name
        return None

    def _tell(self, deployment: Deployment, why: str) -> None:
        if self._told.get(deployment.name) != why:
            self._told[deployment.name] = why
            log.info("deployment.waiting", extra={"deployment": deployment.name, "reason": why})

    def why_not(self, name: str) -> str | None:
        """Say why a deployment has no replica, as far as this process knows."""
        return self._told.get(name)


def _healthy(replica: Replica) -> bool:
    address = urlsplit(replica.url)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=_PROBE_SECONDS
    )
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {replica.secret}"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
