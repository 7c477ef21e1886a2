"""Deployments and replicas in Postgres."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from statistics import median
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import NotFound
from sublet.market.price import Tier
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState, Scaling
from sublet.models.scaling import Load

QUERIES: Final = load_queries("sublet.models")


def put_deployment(tx: Tx, deployment: Deployment, *, now: datetime) -> None:
    """Add a deployment, or set it to these contents."""
    tx.execute(
        QUERIES["put_deployment"],
        {
            "name": deployment.name, "recipe": deployment.recipe, "wanted": deployment.wanted,
            "context_tokens": deployment.context_tokens, "now": now,
            "features": sorted(deployment.features),
            "temperature": deployment.temperature, "top_p": deployment.top_p,
            "owner_id": deployment.owner_id, "target": deployment.target,
            **asdict(deployment.scaling),
        },
    )  # fmt: skip


def list_deployments(tx: Tx) -> list[Deployment]:
    rows = tx.execute(QUERIES["list_deployments"]).fetchall()
    return [_deployment(row) for row in rows]


def set_scaling(tx: Tx, name: str, scaling: Scaling) -> None:
    tx.execute(QUERIES["set_scaling"], {"name": name, **asdict(scaling)})


def set_target(tx: Tx, name: str, target: int, *, fewer_since: datetime | None) -> None:
    """Say how many replicas a deployment shall have now."""
    row = {"name": name, "target": target, "fewer_since": fewer_since}
    tx.execute(QUERIES["set_target"], row)


def put_load(tx: Tx, gateway: str, loads: Mapping[str, Load], *, now: datetime) -> None:
    """Note what one gateway has of each deployment now."""
    with tx.cursor() as cursor:
        cursor.executemany(
            QUERIES["put_load"],
            [
                {"gateway": gateway, "deployment": name, "now": now, **asdict(load)}
                for name, load in loads.items()
            ],
        )


def list_loads(tx: Tx, *, since: datetime) -> dict[str, Load]:
    """Return what all gateways that spoke since an instant have, by deployment."""
    rows = tx.execute(QUERIES["list_loads"], {"since": since}).fetchall()
    return {row.pop("deployment"): Load(**row) for row in rows}


def list_warmups(tx: Tx) -> dict[str, float]:
    """Return {deployment: seconds from a lease to a first request}, the middle of the last few."""
    taken: dict[str, list[float]] = defaultdict(list)
    for row in tx.execute(QUERIES["list_warmups"]).fetchall():
        taken[row["name"]].append(row["seconds"])
    return {name: median(seconds) for name, seconds in taken.items()}


def add_replica(tx: Tx, replica: Replica) -> None:
    tx.execute(
        QUERIES["insert_replica"],
        {
            "id": replica.id, "deployment": replica.deployment, "url": replica.url,
            "secret": replica.secret, "state": replica.state, "detail": replica.detail,
            "since": replica.since, "started_at": replica.started_at or replica.since,
        },
    )  # fmt: skip


def set_replica_state(
    tx: Tx, replica_id: UUID, state: ReplicaState, *, detail: str | None, now: datetime
) -> None:
    """Move a replica; being there already changes nothing."""
    tx.execute(
        QUERIES["set_replica_state"],
        {"id": replica_id, "state": state, "detail": detail, "now": now},
    )


def set_replica_url(tx: Tx, replica_id: UUID, url: str) -> None:
    """Note where a replica that starts is reached."""
    tx.execute(QUERIES["set_replica_url"], {"id": replica_id, "url": url})


def list_live_replicas(tx: Tx) -> list[Replica]:
    return [_replica(row) for row in tx.execute(QUERIES["list_live_replicas"]).fetchall()]


def get_last_replica(tx: Tx, deployment: str) -> Replica | None:
    """Return the newest replica, so that "why is it not there" has an answer."""
    row = one(tx, QUERIES["get_last_replica"], {"deployment": deployment})
    return None if row is None else _replica(row)


def _replica(row: Mapping[str, Any]) -> Replica:
    return Replica(
        id=row["id"],
        deployment=row["deployment"],
        url=row["url"],
        secret=row["secret"],
        state=ReplicaState(row["state"]),
        detail=row["detail"],
        since=row["since"],
        firm=row["firm"],
        started_at=row["started_at"],
        ready_at=row["ready_at"],
        adapters=frozenset(row["adapters"]),
    )


def set_wanted(tx: Tx, name: str, *, wanted: bool) -> Deployment:
    """Say whether a deployment should be served.

    Raises:
        NotFound: there is no such deployment.
    """
    row = one(tx, QUERIES["set_wanted"], {"name": name, "wanted": wanted})
    if row is None:
        raise NotFound(f"there is no deployment {name[:200]!r}")
    return _deployment(row)


def _deployment(row: Mapping[str, Any]) -> Deployment:
    return Deployment(
        name=row["name"],
        recipe=row["recipe"],
        context_tokens=row["context_tokens"],
        wanted=row["wanted"],
        features=frozenset(map(Feature, row["features"])),
        temperature=row["temperature"],
        top_p=row["top_p"],
        owner_id=row["owner_id"],
        scaling=Scaling(
            min_replicas=row["min_replicas"],
            max_replicas=row["max_replicas"],
            tier=Tier(row["tier"]),
            outstanding_tokens=row["outstanding_tokens"],
            first_token_ms=row["first_token_ms"],
            idle_seconds=row["idle_seconds"],
        ),
        target=row["target"],
        fewer_since=row["fewer_since"],
    )
