"""A report that never came is shown."""

from datetime import UTC, datetime

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.metering import audit
from sublet.metering.store import QUERIES
from sublet.tenants import store as tenants

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def missing(db: Database) -> int:
    findings = Findings()
    with db.transaction() as tx:
        audit.audit(tx, findings, now=NOON)
    return findings.counts["charged_once"]["reports_that_never_came"]


def test_a_gap_in_a_source_s_numbers_is_counted(db: Database) -> None:
    with db.transaction() as tx:
        tenant = tenants.create_tenant(tx, "acme", now=NOON)
    for source, numbers in (("gateway:a", [1, 2, 3]), ("gateway:b", [3, 5]), ("gateway:c", [2])):
        for number in numbers:
            with db.transaction() as tx:
                tx.execute(
                    QUERIES["insert_usage"],
                    {
                        "id": new_id(), "source": source, "sequence": number,
                        "tenant_id": tenant.id, "api_key_id": None, "lease_id": None,
                        "reservation_id": None,
                        "model": "m", "request_id": None, "gpu_seconds": 0, "input_tokens": 0,
                        "cache_read_tokens": 0, "cache_write_tokens": 0, "output_tokens": 0,
                        "reasoning_tokens": 0, "delivered_tokens": 0,
                        "outcome": "completed", "happened_at": NOON, "recorded_at": NOON,
                    },
                )  # fmt: skip
    assert missing(db) == 0 + 3 + 1
