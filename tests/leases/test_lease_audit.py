"""Replaying a pool: the auditor's eye for double sales and for jobs that waited."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.audit import Findings
from sublet.fleet.store import InternalSpan
from sublet.leases.audit import Capacity, Span, late_jobs, sweep

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = NOON + timedelta(seconds=1000)
NOTICE = timedelta(seconds=10)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def span(start: float, end: float, gpus: int = 8, use: str = "lease") -> Span:
    return Span(use=use, id=UUID(int=int(start)), gpus=gpus, start=at(start), end=at(end))


def job(
    submitted: float, started: float | None, ended: float | None, gpus: int = 8
) -> InternalSpan:
    return InternalSpan(
        job_id=UUID(int=int(submitted * 10)),
        pool="h200",
        gpus=gpus,
        wanted=gpus,
        name="training",
        submitted_at=at(submitted),
        started_at=None if started is None else at(started),
        ended_at=None if ended is None else at(ended),
    )


EIGHT = [Capacity(at=NOON, gpus=8, notice=NOTICE)]


def swept(spans: list[Span], capacity: list[Capacity] | None = None) -> Findings:
    findings = Findings()
    sweep("h200", capacity or EIGHT, spans, findings, now=NOW)
    return findings


@pytest.mark.parametrize(
    ("spans", "sales"),
    [
        ([], 0),
        ([span(0, 100), span(100, 200)], 0),  # half-open: one ends where the next starts
        ([span(0, 100), span(99, 200)], 1),
        ([span(0, 100, 4), span(0, 100, 4, "internal")], 0),
        ([span(0, 100, 4), span(50, 100, 5, "internal")], 1),
        ([span(0, 100, 4, "model"), span(0, 100, 4), span(50, 51, 1)], 1),
    ],
)
def test_a_double_sale_is_seen(spans: list[Span], sales: int) -> None:
    assert len(swept(spans).differences) == sales


def test_a_failing_node_is_no_double_sale_but_selling_it_again_is() -> None:
    shrunk = [*EIGHT, Capacity(at=at(50), gpus=4, notice=NOTICE)]
    assert swept([span(0, 100)], shrunk).differences == []
    assert len(swept([span(0, 100, 4), span(60, 70, 1)], shrunk).differences) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lease", "internal", "model"]),
            st.integers(0, 900),
            st.integers(0, 100),
            st.integers(1, 4),
        ),
        max_size=8,
    )
)
def test_every_gpu_second_belongs_to_exactly_one_use(
    found: list[tuple[str, int, int, int]],
) -> None:
    spans = [span(start, start + length, gpus, use) for use, start, length, gpus in found]
    counts = swept(spans).counts["no_double_sale"]
    uses = ("lease", "internal", "model")
    assert sum(counts[f"{use}_gpu_seconds"] for use in (*uses, "idle")) == 8 * 1000
    for use in uses:
        used = sum(length * gpus for kind, _, length, gpus in found if kind == use)
        assert counts[f"{use}_gpu_seconds"] == used


@pytest.mark.parametrize(
    ("jobs", "leases", "late"),
    [
        # It had to wait for a lease, and it left in time.
        ([job(100, 110, 200)], [span(0, 110)], 0),
        ([job(100, 112, 200)], [span(0, 112)], 0),
        ([job(100, 113, 200)], [span(0, 113)], 1),
        ([job(100, None, None)], [span(0, 1000)], 1),
        # Cancelled while it waited, in time and late.
        ([job(100, None, 105)], [span(0, 1000)], 0),
        ([job(100, None, 150)], [span(0, 1000)], 1),
        # Nobody's fault: the lease was gone in time.
        ([job(100, 300, 400)], [span(0, 105)], 0),
        # It waited for another internal job, and no lease was in its way.
        ([job(0, 0, 300), job(100, 300, 400)], [], 0),
        # The first in the queue waits for leases, the second for the first.
        ([job(100, 110, 300), job(101, 300, 400)], [span(0, 110)], 0),
        # Leases that came while it waited stood in its way as well.
        ([job(100, 300, 400)], [span(0, 105), span(150, 300)], 1),
    ],
)
def test_a_job_that_waited_for_leases_is_seen(
    jobs: list[InternalSpan], leases: list[Span], late: int
) -> None:
    ran = [
        Span(use="internal", id=job.job_id, gpus=job.gpus, start=job.started_at,
             end=job.ended_at or NOW)
        for job in jobs
        if job.started_at is not None
    ]  # fmt: skip
    findings = Findings()
    late_jobs("h200", EIGHT, jobs, [*leases, *ran], findings, now=NOW)
    assert len(findings.differences) == late
