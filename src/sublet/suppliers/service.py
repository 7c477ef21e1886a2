"""Changing what is known of suppliers: checked, and with versions of what is paid."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound
from sublet.core.money import Money
from sublet.core.vault import Vault
from sublet.models import store as models
from sublet.suppliers import store
from sublet.suppliers.quota import checked_zone, project_scope
from sublet.suppliers.store import QUERIES
from sublet.suppliers.supplier import DEFAULT, Rates, Supplier


def put(
    tx: Tx,
    supplier: Supplier,
    *,
    models: Mapping[str, str],
    prices: Mapping[tuple[str, str], Rates],
    limits: Sequence[Mapping[str, Any]],
    now: datetime,
) -> None:
    """Create a supplier, or make it so; add the prices that differ from what holds.

    Args:
        tx: any transaction.
        supplier: who.
        models: {its model: our deployment}.
        prices: by (its model, tier).
        limits: of its project.
        now: the present instant.

    Raises:
        Invalid: it names what is not there, or would sell one model twice.
    """
    for model, deployment in models.items():
        check_deployment(tx, deployment)
        if (model, DEFAULT) not in prices:
            raise Invalid(f"models: {model!r} has no price in tier {DEFAULT!r}")
    if len(set(models.values())) < len(models):
        raise Invalid("models: two of them stand for the same model of ours")
    for limit in limits:
        checked_zone(limit["zone"])
        if limit["model"] is not None and limit["model"] not in models:
            raise Invalid(f"limits: {limit['model']!r} is none of its models")
    keys = [(one["model"], one["tier"], one["measure"], one["span"]) for one in limits]
    if len(set(keys)) < len(keys):
        raise Invalid("limits: two of them are of the same measure and span")
    store.put(tx, supplier)
    store.put_models(tx, supplier.name, models)
    for (model, _), rates in prices.items():
        held = store.list_rates(tx, at=rates.happened_at).get((supplier.name, model), {})
        before = held.get(rates.tier)
        if before is None or (before.nanos, before.per) != (rates.nanos, rates.per):
            if rates.happened_at < now:
                raise Invalid(
                    "valid_from: a price holds from now on or later: what was bought before keeps"
                    " its own"
                )
            store.add_rates(tx, supplier.name, model, rates, now=now)
    store.put_limits(tx, project_scope(supplier.project), limits)


def check_deployment(tx: Tx, name: str) -> None:
    """Raises NotFound: we have no such model."""
    if all(deployment.name != name for deployment in models.list_deployments(tx)):
        raise NotFound(f"there is no model {name[:100]!r} here; `sublet model list` shows them")


def bound_to(supplier: str) -> str:
    """Return what a supplier's key is sealed for, so that it cannot be put into another's row."""
    return f"supplier/{supplier}"


def set_key(tx: Tx, vault: Vault, name: str, key: str, *, now: datetime) -> None:
    """Raises NotFound: there is no such supplier."""
    store.get(tx, name)
    store.set_key(tx, name, vault.seal(key, bound_to=bound_to(name)), now=now)


def open_keys(tx: Tx, vault: Vault) -> dict[str, str]:
    """Return the keys by supplier.

    Raises:
        Misconfigured: the vault's key is not the one that they were sealed with.
    """
    return {
        name: vault.open(sealed, bound_to=bound_to(name))
        for name, sealed in store.list_keys(tx).items()
    }


def list_purchases(
    tx: Tx, *, supplier: str | None, request_id: str | None, before: int | None, limit: int
) -> list[dict[str, Any]]:
    """Return purchases, newest first."""
    row = {"supplier": supplier, "request_id": request_id, "before": before, "limit": limit}
    return tx.execute(QUERIES["list_purchases"], row).fetchall()


def sum_bought(tx: Tx, *, since: datetime) -> dict[str, tuple[int, Money]]:
    """Return {supplier: (purchases, what they cost)} since an instant."""
    return {
        row["supplier"]: (row["purchases"], Money(int(row["nanos"])))
        for row in tx.execute(QUERIES["sum_bought"], {"since": since})
    }


def list_bought(tx: Tx, supplier: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Return what was bought of a supplier in a time, in the order of the record."""
    row = {"supplier": supplier, "start": start, "end": end}
    return tx.execute(QUERIES["list_bought"], row).fetchall()
