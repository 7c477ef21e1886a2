"""The API's documents of contracts."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from sublet.app.documents import Body, Count, Name, Text, Usd, usd
from sublet.leases.contract import Contract, Line, bill, total
from sublet.leases.reservation import Reservation


class NewStep(Body):
    starts_at: datetime
    gpus: Count
    usd_per_gpu_hour: Usd


class NewContract(Body):
    id: UUID | None = Field(None, description="Yours, so that sending it twice signs once")
    tenant_id: UUID
    name: Name
    pool: Name | None = Field(None, description="Needed only where there is more than one")
    steps: Annotated[list[NewStep], Field(min_length=1, max_length=100)]
    ends_at: datetime
    minimum_usd: Usd | None = Field(None, description="Paid at least, over all of its time")
    exception: Annotated[Text, Field(max_length=1000)] | None = Field(
        None, description="Why a step's price may be below the pool's floor, where one is"
    )
    shortfall_percent: Annotated[int, Field(ge=0, le=100, strict=True)] = 100
    late_percent: Annotated[int, Field(ge=0, le=100, strict=True)] = Field(
        100, description="Of the price of GPUs that are not there yet, which is not paid"
    )
    late_days: Annotated[int, Field(ge=0, le=3660, strict=True)] | None = Field(
        None, description="So late, the tenant may end it at once, without the minimum"
    )
    missing_percent: Annotated[int, Field(ge=0, le=100, strict=True)] = Field(
        100, description="Of what is missing to the minimum, which the tenant owes"
    )
    notice_days: Annotated[int, Field(ge=0, le=3660, strict=True)] = 90
    recall_days: Annotated[int, Field(ge=0, le=3660, strict=True)] | None = None
    renewal_days: Annotated[int, Field(ge=0, le=3660, strict=True)] = 0
    notice_seconds: Annotated[int, Field(ge=0, le=86_400, strict=True)] | None = None


def contract_document(contract: Contract, steps: Sequence[Reservation]) -> dict[str, Any]:
    lines = bill(contract, datetime.min.replace(tzinfo=UTC), contract.ends_at)
    return {
        "id": contract.id,
        "tenant_id": contract.tenant_id,
        "name": contract.name,
        "pool": contract.pool,
        "most_gpus": contract.most_gpus,
        "starts_at": contract.starts_at,
        "ends_at": contract.ends_at,
        "signed_at": contract.signed_at,
        "notice_seconds": int(contract.notice.total_seconds()),
        "minimum_usd": usd(contract.minimum),
        "shortfall_percent": contract.shortfall_percent,
        "late_percent": contract.late_percent,
        "late_days": contract.late_days,
        "late_usd": usd(total([line for line in lines if line.what == "late"])),
        "taken_back_usd": usd(total([line for line in lines if line.what == "broken"])),
        "missing_percent": contract.missing_percent,
        "notice_days": contract.notice_days,
        "recall_days": contract.recall_days,
        "renewal_days": contract.renewal_days,
        "ended_by": contract.ended_by,
        "state": "closed" if contract.closed else "open",
        "total_usd": usd(total(lines)),
        "steps": [
            {
                "reservation_id": sold.id,
                "starts_at": sold.starts_at,
                "ends_at": sold.ends_at,
                "gpus": sold.gpus,
                "gpus_delivered": contract.delivered(place),
                "gpus_taken_back": sold.lost_gpus,
                "usd_per_gpu_hour": usd(step.rate.charge(3600)),
            }
            for place, (sold, step) in enumerate(zip(steps, contract.steps, strict=True))
        ],
    }


def line_document(line: Line) -> dict[str, Any]:
    return {
        "due_at": line.due_at,
        "what": line.what,
        "gpus": line.gpus,
        "seconds": line.seconds,
        "amount_usd": usd(line.amount),
    }
