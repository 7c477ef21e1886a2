"""Deployments and replicas in Postgres."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import NotFound
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState

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
        },
    )  # fmt: skip


def list_deployments(tx: Tx) -> list[Deployment]:
    rows = tx.execute(QUERIES["list_deployments"]).fetchall()
    return [_deployment(row) for row in rows]


def add_replica(tx: Tx, replica: Replica) -> None:
    tx.execute(
        QUERIES["insert_replica"],
        {
            "id": replica.id, "deployment": replica.deployment, "url": replica.url,
            "secret": replica.secret, "state": replica.state, "detail": replica.detail,
            "since": replica.since,
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
    )
