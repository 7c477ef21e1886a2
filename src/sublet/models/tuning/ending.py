"""The end of a job: what was trained is charged, what was learnt becomes models, the rest goes."""

from datetime import datetime, timedelta
from uuid import UUID

from psycopg.types.json import Json

from sublet.core.db import Tx
from sublet.core.failpoint import failpoint
from sublet.core.ids import derived_id
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import cache_read_sku, input_sku, output_sku, tuned
from sublet.metering import store as metering
from sublet.metering.usage import Line, Outcome, Usage
from sublet.models import artefacts, catalogue
from sublet.models.artefact import State as ArtefactState
from sublet.models.model import full_name
from sublet.models.tuning import store
from sublet.models.tuning.job import (
    LONGEST,
    MOST_CHECKPOINTS,
    Checkpoint,
    State,
    Trouble,
    Tuning,
    own_name,
)
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId, revenue_of, wallet_of

_SPARE = timedelta(days=1)


def hold(tx: Tx, tuning: Tuning, tokens: int, *, now: datetime) -> UUID:
    """Set aside what a job costs at most, and return the hold.

    Raises:
        Unpaid: the wallet cannot pay for it.
    """
    price = market.get_price(tx, tuning.price_id)
    most = price.rate.charge_most(tokens)
    transfer = Transfer(
        id=derived_id(tuning.id, "hold"),
        debit_account=ledger.get_account(tx, wallet_of(tuning.tenant_id)).id,
        credit_account=ledger.get_account(tx, revenue_of(tuning.tenant_id)).id,
        amount=most if most.nanos else type(most)(1),  # a hold of nothing is no hold
        reason="tokens",
        happened_at=now,
    )
    until = tuning.created_at + LONGEST + _SPARE
    ledger.hold(tx, transfer, holder=tuning.source, expires_at=until, now=now)
    return transfer.id


def end(tx: Tx, tuning: Tuning, to: State, *, now: datetime, error: Trouble | None = None) -> None:
    """End a job that is locked.

    Raises:
        Refused: it cannot end so.
    """
    tuning.check_move(to)
    checkpoints = [] if to is State.FAILED else store.list_checkpoints(tx, tuning.id)
    if tuning.hold_id is not None:
        _settle(tx, tuning, to, checkpoints[0].tokens if checkpoints else 0, now=now)
    failpoint("tuning.end.settled")
    kept = [one for one in checkpoints if one.epoch is not None][:MOST_CHECKPOINTS]
    model = None
    for checkpoint in kept:
        is_last = to is State.SUCCEEDED and checkpoint is kept[0]
        name = _publish(tx, tuning, checkpoint, is_last=is_last, now=now)
        model = name if is_last else model
    drop(tx, tuning, but={one.artefact_id for one in kept}, now=now)
    store.move(tx, tuning, to, now=now, error=error, model=model)
    store.set_run(tx, tuning.id, None)
    if error is not None:
        store.tell(tx, tuning.id, error.message, level="error", now=now)
    elif to is State.SUCCEEDED:
        store.tell(tx, tuning.id, f"New fine-tuned model created: {model}", now=now)
        store.tell(tx, tuning.id, "The job has successfully completed", now=now)
    else:
        store.tell(tx, tuning.id, "The job was cancelled", now=now)


def drop(tx: Tx, tuning: Tuning, *, but: set[UUID], now: datetime) -> None:
    """Delete the checkpoints of a job for good, but for some."""
    row = {"tenant_id": tuning.tenant_id, "id": str(tuning.id)}
    for found in tx.execute(store.QUERIES["list_artefacts"], row).fetchall():
        if found["id"] not in but:
            artefact = artefacts.get(tx, found["id"], lock=True)
            artefacts.move(tx, artefact, ArtefactState.DELETED, now=now)


def _settle(tx: Tx, tuning: Tuning, to: State, trained: int, *, now: datetime) -> None:
    assert tuning.hold_id is not None
    if not trained:
        ledger.void(tx, tuning.hold_id, now=now)
        return
    usage = Usage(
        id=derived_id(tuning.id, "usage"),
        source=tuning.source,
        sequence=1,
        tenant_id=tuning.tenant_id,
        api_key_id=tuning.api_key_id,
        model=tuning.base,
        input_tokens=trained,
        outcome=Outcome.COMPLETED if to is State.SUCCEEDED else Outcome.ABORTED,
        happened_at=now,
    )
    line = Line(price=market.get_price(tx, tuning.price_id), quantity=trained)
    metering.settle(tx, usage, [line], hold_id=tuning.hold_id, now=now)


def _publish(
    tx: Tx, tuning: Tuning, checkpoint: Checkpoint, *, is_last: bool, now: datetime
) -> str:
    """Make a model of a checkpoint, and return its name. It begins with its base's prices."""
    base = catalogue.get(tx, tuning.base, tenant_id=None)
    tenant = tenants.get_tenant(tx, TenantId(tuning.tenant_id))
    name = full_name(tenant, own_name(tuning, step=None if is_last else checkpoint.step))
    tx.execute(
        store.QUERIES["insert_model"],
        {
            "name": name, "owner_id": tenant.id, "title": f"{base.title}, fine-tuned",
            "recipe": "", "serving": Json({}), "artefact_id": checkpoint.artefact_id,
            "licence": base.licence, "licence_url": base.licence_url, "base": base.name,
            "now": now,
        },
    )  # fmt: skip
    for sku in (input_sku, cache_read_sku, output_sku):
        price = market.find_price(tx, sku(tuned(base.name))) or market.find_price(
            tx, sku(base.name)
        )
        if price is not None:
            market.set_price(tx, sku(name), price.rate, now=now)
    return name
