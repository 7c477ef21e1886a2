"""Contracts: the operator signs them, both look at them and their bills, either may end them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from fastapi import APIRouter

from sublet.app.contract_documents import NewContract, contract_document, line_document
from sublet.app.documents import usd
from sublet.app.http import AnyCaller, Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.app.routes.leases import only_pool
from sublet.app.routes.tenants import instant
from sublet.core.db import Tx
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.core.money import Money, parse_amount
from sublet.fleet import store as fleet
from sublet.leases import contracts
from sublet.leases.contract import Contract, Step, bill, total
from sublet.market.store import usd_per_hour
from sublet.tenants import store as tenants
from sublet.tenants.tenant import TenantId

router = APIRouter(prefix="/v1")


@router.post("/contracts", status_code=201, tags=["contracts"])
def sign_contract(ours: Ours, _: Operator, once: OneCall, body: NewContract) -> dict[str, Any]:
    """Sign a contract with a tenant.

    Its GPUs are set aside for all of its time, by ramp step, and are owed used or not: a day at a
    time, each held a day ahead. Lease from its steps like from any reservation.
    """
    if (said := once.replay(body)) is not None:
        return said
    steps = []
    for number, step in enumerate(body.steps, start=1):
        start = instant(step.starts_at, f"steps.{number}.starts_at")
        assert start is not None
        rate = usd_per_hour(step.usd_per_gpu_hour)
        steps.append(Step(starts_at=start, gpus=step.gpus, rate=rate))
    ends_at = instant(body.ends_at, "ends_at")
    assert ends_at is not None
    pool_name = body.pool or only_pool(ours)

    def sign(tx: Tx) -> dict[str, Any]:
        now = ours.clock.now()
        tenant = tenants.get_tenant(tx, TenantId(body.tenant_id))
        pool = fleet.lock_pool(tx, pool_name)
        notice = body.notice_seconds
        contract = Contract(
            id=body.id or new_id(),
            tenant_id=tenant.id,
            pool=pool.name,
            name=body.name,
            steps=tuple(steps),
            ends_at=ends_at,
            signed_at=now,
            notice=timedelta(seconds=pool.policy.notice_seconds if notice is None else notice),
            minimum=Money(0) if body.minimum_usd is None else parse_amount(body.minimum_usd),
            shortfall_percent=body.shortfall_percent,
            notice_days=body.notice_days,
            recall_days=body.recall_days,
            late_percent=body.late_percent,
            late_days=body.late_days,
            missing_percent=body.missing_percent,
            renewal_days=body.renewal_days,
        )
        signed = contracts.sign(tx, contract, now=now, exception=body.exception)
        return contract_document(signed, contracts.steps_of(tx, signed.id))

    document = once.run(body, sign)
    ours.wake()
    return document


@router.get("/contracts", tags=["contracts"])
def list_contracts(ours: Ours, found: AnyCaller) -> dict[str, Any]:
    """List your contracts, newest first; the operator sees everybody's."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        return {
            "items": [
                contract_document(one, contracts.steps_of(tx, one.id))
                for one in contracts.list_of(tx, tenant_id)
            ]
        }


@router.get("/contracts/{contract_id}", tags=["contracts"])
def show_contract(ours: Ours, found: AnyCaller, contract_id: UUID) -> dict[str, Any]:
    """Show a contract, and the reservation of each of its steps."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        contract = contracts.get_contract(tx, contract_id, tenant_id=tenant_id)
        return contract_document(contract, contracts.steps_of(tx, contract_id))


@router.get("/contracts/{contract_id}/bill", tags=["contracts"])
def show_bill(
    ours: Ours,
    found: AnyCaller,
    contract_id: UUID,
    start: datetime | None = None,
    end: datetime | None = None,
) -> dict[str, Any]:
    """Show what falls due after `start` and until `end`: all of it, if they are left out."""
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        contract = contracts.get_contract(tx, contract_id, tenant_id=tenant_id)
    after = instant(start, "start") or datetime.min.replace(tzinfo=UTC)
    until = instant(end, "end") or contract.ends_at
    if until < after:
        raise Invalid("end: a bill ends after it starts")
    lines = bill(contract, after, until)
    return {
        "contract_id": contract.id,
        "total_usd": usd(total(lines)),
        "lines": [line_document(line) for line in lines],
    }


@router.delete("/contracts/{contract_id}", tags=["contracts"])
def end_contract(ours: Ours, found: AnyCaller, contract_id: UUID) -> dict[str, Any]:
    """End a contract before its time: the tenant by its notice, the operator by its recall right.

    It ends when so many days are over, and is not renewed. Recalled, it has no minimum any more. A
    tenant whose capacity is later than was agreed ends it at once, without the minimum.
    """
    who = "operator" if found.tenant is None else "tenant"
    tenant_id = None if found.tenant is None else found.tenant.id
    with ours.db.transaction() as tx:
        ended = contracts.end_early(tx, contract_id, who, tenant_id=tenant_id, now=ours.clock.now())
        return contract_document(ended, contracts.steps_of(tx, contract_id))
