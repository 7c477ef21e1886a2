"""The datasets beside cost and usage: contract commitments, billing periods, lines of invoices."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from typing import Any, Final
from uuid import UUID

from sublet.core.db import Tx
from sublet.finance.focus import store
from sublet.finance.focus.shape import GPU_HOURS, category, instant, usd
from sublet.finance.focus.store import Document
from sublet.invoices.invoice import State, describe, month_of

Row = dict[str, str | None]
_STATUS: Final = {State.ISSUED: "Issued", State.PAID: "Issued", State.VOID: "Voided"}


def common(document: Document, seller: str) -> Row:
    """Return the columns that all rows of a document share."""
    return {
        "BillingAccountId": str(document.tenant_id),
        "BillingAccountName": document.tenant,
        "BillingCurrency": "USD",
        "PricingCurrency": "USD",
        "BillingPeriodStart": instant(document.period[0]),
        "BillingPeriodEnd": instant(document.period[1]),
        "InvoiceId": document.label,
        "InvoiceIssuerName": seller,
    }


def detail_id(label: str, number: int) -> str:
    return f"{label}/{number}"


def billing_periods(documents: Sequence[Document], seller: str, *, now: datetime) -> Iterator[Row]:
    """Yield each period once: it is closed when it is over and all of it is on invoices."""
    periods: dict[tuple[datetime, datetime], list[Document]] = {}
    for document in documents:
        periods.setdefault(document.period, []).append(document)
    for (start, end), inside in sorted(periods.items()):
        changes = [document.state_since for document in inside if document.state_since is not None]
        is_open = now < end or any(document.invoice is None for document in inside)
        yield {
            "BillingPeriodCreated": instant(start),
            "BillingPeriodStart": instant(start),
            "BillingPeriodEnd": instant(end),
            "BillingPeriodLastUpdated": instant(max(changes, default=start)),
            "BillingPeriodStatus": "Open" if is_open else "Closed",
            "InvoiceIssuerName": seller,
        }


def invoice_details(tx: Tx, documents: Sequence[Document], seller: str) -> Iterator[Row]:
    """Yield each line of each invoice, then its tax and its rounding."""
    for document in documents:
        invoice = document.invoice
        if invoice is None:
            continue
        assert document.state_since is not None
        assert document.label is not None
        shared = common(document, seller) | {
            "InvoiceDetailCreated": instant(invoice.issued_at),
            "InvoiceDetailLastUpdated": instant(document.state_since),
            "InvoiceIssueDate": instant(invoice.issued_at),
            "InvoiceIssueStatus": _STATUS[invoice.state],
            "PaymentDueDate": instant(datetime.combine(invoice.due_on, time(), UTC)),
            "PaymentTerms": f"Net {document.terms_days}" if document.terms_days else "Due on issue",
            "ReferenceInvoiceId": document.corrected or document.label,
        }
        for number, line in enumerate(store.lines_of(tx, document), start=1):
            texts = {"tax": line.note or "Tax", "rounding": "Rounding to the cent"}
            grain = {
                f"x_{name.title()}": value
                for name in ("sku", "pool", "tier", "model", "key")
                if (value := getattr(line, name))
            }
            yield shared | {
                "BilledCost": usd(line.amount_nanos),
                "ChargeCategory": category(line),
                "InvoiceDetailDescription": texts.get(line.what) or describe(line),
                "InvoiceDetailGrain": json.dumps(grain, separators=(",", ":")) if grain else None,
                "InvoiceDetailId": detail_id(document.label, number),
            }


def contract_commitments(
    tx: Tx, month: date, seller: str, tenant_id: UUID | None, *, now: datetime
) -> Iterator[Row]:
    """Yield a usage commitment for each step of a contract, and one of spend for its minimum.

    The shares of a month are not told: what is committed to is the whole of a step.
    """
    first, after = month_of(month)
    row = {
        "tenant_id": tenant_id,
        "starts_at": datetime.combine(first, time(), UTC),
        "ends_at": datetime.combine(after, time(), UTC),
    }
    seen: set[UUID] = set()
    for found in tx.execute(store.QUERIES["list_commitments"], row):
        shared = _commitment(found, seller)
        yield shared | {
            "ContractCommitmentId": str(found["step_id"]),
            "ContractCommitmentType": "GPU capacity",
            "ContractCommitmentDescription": f"{found['name']}: {found['gpus']} GPUs of {found['pool']}",
            "ContractCommitmentCategory": "Usage",
            "ContractCommitmentQuantity": f"{found['hours']:f}",
            "ContractCommitmentUnit": GPU_HOURS,
            "ContractCommitmentCost": f"{found['cost']:f}",
            "ContractCommitmentDiscountPercentage": None
            if found["discount"] is None
            else f"{found['discount']:f}",
            "ContractCommitmentBenefitCategory": "Availability",
            "ContractCommitmentFulfillmentInterval": "Daily",
            "ContractCommitmentPeriodStart": instant(found["step_starts_at"]),
            "ContractCommitmentPeriodEnd": instant(found["step_ends_at"]),
            "ContractCommitmentLifecycleStatus": _status(
                found, found["step_starts_at"], found["step_ends_at"], now
            ),
            "ContractCommitmentDurationType": _days(found["step_starts_at"], found["step_ends_at"]),
            "ContractCommitmentApplicability": _applies("CapacityReservationId", found["step_id"]),
        }
        if found["minimum_nanos"] and found["contract_id"] not in seen:
            yield shared | {
                "ContractCommitmentId": f"{found['contract_id']}/minimum",
                "ContractCommitmentType": "Minimum",
                "ContractCommitmentDescription": f"{found['name']}: what is paid at least",
                "ContractCommitmentCategory": "Spend",
                "ContractCommitmentCost": usd(int(found["minimum_nanos"])),
                "ContractCommitmentBenefitCategory": "Availability",
                "ContractCommitmentFulfillmentInterval": "Full Period",
                "ContractCommitmentPeriodStart": instant(found["starts_at"]),
                "ContractCommitmentPeriodEnd": instant(found["ends_at"]),
                "ContractCommitmentLifecycleStatus": _status(
                    found, found["starts_at"], found["ends_at"], now
                ),
                "ContractCommitmentDurationType": _days(found["starts_at"], found["ends_at"]),
                "ContractCommitmentApplicability": _applies("BillingAccountId", found["tenant_id"]),
            }
        seen.add(found["contract_id"])


def minimum_applied(contract_id: str | None, nanos: int) -> str | None:
    """Return what a minimum's charge fulfils, as FOCUS's `ContractApplied`."""
    if contract_id is None:
        return None
    return (
        f'{{"Elements":[{{"ContractId":"{contract_id}",'
        f'"ContractCommitmentId":"{contract_id}/minimum",'
        f'"ContractCommitmentAppliedCost":{usd(nanos)}}}]}}'
    )


def _commitment(found: dict[str, Any], seller: str) -> Row:
    return {
        "BillingCurrency": "USD",
        "ContractId": str(found["contract_id"]),
        "ContractPeriodStart": instant(found["starts_at"]),
        "ContractPeriodEnd": instant(found["ends_at"]),
        "ContractCommitmentCreated": instant(found["signed_at"]),
        "ContractCommitmentLastUpdated": instant(found["signed_at"]),
        "ContractCommitmentModel": "Continuous",
        "ContractCommitmentOfferCategory": "Negotiated",
        "ContractCommitmentPaymentInterval": "Custom",  # by the day
        "ContractCommitmentPaymentModel": "No Upfront",
        "InvoiceIssuerName": seller,
        "ServiceProviderName": seller,
    }


def _status(found: dict[str, Any], start: datetime, end: datetime, now: datetime) -> str:
    if now < start:
        return "Pending"
    if now < end:
        return "Active"
    return "Canceled" if found["ended_by"] else "Expired"


def _days(start: datetime, end: datetime) -> str:
    return f"{(end - start).days} Days"


def _applies(column: str, id_: UUID) -> str:
    rule = {"Dimension": column, "Operator": "In", "Values": [str(id_)]}
    return json.dumps({"InclusionOperator": "And", "Inclusions": [rule]}, separators=(",", ":"))
