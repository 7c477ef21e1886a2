"""What statements say of a past that was filled in, beside what the auditor and the ledger say."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from benchmarks.ledger_of import fill
from starlette.testclient import TestClient
from tests.core.databases import fresh
from tests.finance.lots import a_lot, usd

from sublet.app.admissions import Admissions
from sublet.app.audit import audit
from sublet.app.bootstrap import bootstrap
from sublet.app.control import build_api
from sublet.app.secrets import load_or_make
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Invalid
from sublet.engine.simulated import SimulatedEngine
from sublet.finance import store
from sublet.finance.asset import Change
from sublet.finance.record import SOLD, Record
from sublet.finance.statement import By, statement, total

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
# A pool of its own with an internal job over midnight, one that waits, and one that goes on.
JOBS = """
INSERT INTO pool (name, gpus, notice_seconds) VALUES ('extra', 8, 60);
INSERT INTO pool_event (pool, gpus, notice_seconds, happened_at, recorded_at)
VALUES ('extra', 8, 60, '2026-03-01T00:00Z', now()), ('extra', 6, 60, '2026-03-03T12:00Z', now());
INSERT INTO internal_job_event (job_id, event, pool, gpus, name, happened_at, recorded_at)
SELECT ('00000000-0000-0000-0000-00000000000' || job)::uuid, event, 'extra', gpus, 'job', at, now()
  FROM (VALUES (1, 'submitted', 4, '2026-03-01T20:00Z'::timestamptz),
               (1, 'started', 4, '2026-03-01T20:00Z'), (1, 'ended', 4, '2026-03-02T03:30Z'),
               (2, 'submitted', 2, '2026-03-02T01:00Z'),
               (3, 'submitted', 1, '2026-03-02T00:00Z'), (3, 'started', 1, '2026-03-02T12:00Z'))
       AS jobs(job, event, gpus, at);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    db: Database
    now: datetime  # when all of it was over


@pytest.fixture(scope="module")
def past(postgres_url: str, template: str) -> Iterator[Past]:
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            url = psycopg.conninfo.make_conninfo(postgres_url, dbname=tx.info.dbname)
        fill(url, 2_000, tenants=5, vacuum=False)
        with db.transaction() as tx:
            tx.execute(JOBS)
        yield Past(db=db, now=datetime.now(UTC))


def whole(past: Past) -> Record:
    with past.db.transaction() as tx:
        return store.read_record(
            tx, date(2020, 1, 1), past.now.date() + timedelta(days=1), now=past.now
        )


def test_hours_are_those_that_the_auditor_counts(past: Past) -> None:
    record = whole(past)
    counts = audit(past.db, clock=ManualClock(past.now)).counts["no_double_sale"]
    used: dict[str, float] = {}
    for one in record.hours:
        for use, hours in one.used.items():
            used[use] = used.get(use, 0.0) + hours
    assert used["internal"] * 3600 == pytest.approx(
        counts["internal_gpu_seconds"], rel=1e-4, abs=60
    )
    sold = sum(used.get(use, 0.0) for use in SOLD)
    assert sold * 3600 == pytest.approx(counts["lease_gpu_seconds"], rel=1e-4, abs=60)
    healthy = sum(one.healthy for one in record.hours) * 3600
    assert healthy == pytest.approx(
        sum(counts[f"{use}_gpu_seconds"] for use in ("internal", "lease", "model", "idle")),
        rel=1e-4,
    )


def test_days_are_cut_at_midnight_and_a_job_that_waits_uses_nothing(past: Past) -> None:
    with past.db.transaction() as tx:
        record = store.read_record(tx, date(2026, 3, 1), date(2026, 3, 4), now=past.now)
    found = {one.day.day: one for one in record.hours if one.pool == "extra"}
    assert {day: one.used.get("internal", 0.0) for day, one in found.items()} == {
        1: 16.0, 2: 14.0 + 12.0, 3: 24.0,
    }  # fmt: skip
    assert {day: one.healthy for day, one in found.items()} == {1: 192.0, 2: 192.0, 3: 168.0}


def test_revenue_is_that_of_the_ledger_to_the_nano(past: Past) -> None:
    record = whole(past)
    with past.db.transaction() as tx:
        row = tx.execute(
            "SELECT sum(credits_posted - debits_posted) AS nanos FROM account"
            " WHERE code LIKE 'tenant:%%:revenue'"
        ).fetchone()
    assert row is not None
    assert record.revenue_nanos == int(row["nanos"])
    assert record.revenue_nanos > 0
    assert sum(record.tokens.values()) > 0


def test_periods_add_up_to_the_whole(past: Past) -> None:
    record = whole(past)
    days = sorted({one.day for one in record.hours})
    middle = days[len(days) // 2]
    with past.db.transaction() as tx:
        parts = [
            store.read_record(tx, record.start, middle, now=past.now),
            store.read_record(tx, middle, record.end, now=past.now),
        ]
    assert sum(part.revenue_nanos for part in parts) == record.revenue_nanos
    lines = [total(statement([], [], part, by=By.POOL)) for part in parts]
    both = total(statement([], [], record, by=By.POOL))
    for use, hours in both.hours.items():
        assert sum(line.hours[use] for line in lines) == pytest.approx(hours, rel=1e-6, abs=1e-3)


def test_the_register_keeps_what_it_was_told_and_says_no_to_other_contents(db: Database) -> None:
    lots = [a_lot(), a_lot(name="two")]
    change = Change(lot="one", effective_on=date(2027, 1, 1), life_months=72, salvage=usd(0))
    with db.transaction() as tx:
        assert store.add(tx, lots, [], now=NOON) == (2, 0)
        assert store.add(tx, lots, [change], now=NOON) == (0, 1)
        assert store.add(tx, [], [change], now=NOON) == (0, 0)
        assert store.list_lots(tx) == lots
        assert store.list_changes(tx) == [change]
    for lots_, changes, why in (
        ([a_lot(gpus=101)], [], "records stand"),
        ([], [Change(lot="one", effective_on=date(2027, 1, 15), life_months=70, salvage=usd(0))],
         "records stand"),
        ([], [Change(lot="three", effective_on=date(2027, 1, 1), life_months=70, salvage=usd(0))],
         "no such lot"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why), db.transaction() as tx:
            store.add(tx, lots_, changes, now=NOON)
    for change_ in ("UPDATE asset_lot SET name = 'x'", "DELETE FROM asset_change"):
        with (
            pytest.raises(psycopg.errors.IntegrityConstraintViolation),
            db.transaction() as tx,
        ):
            tx.execute(change_.encode())


LOTS = (
    "lot,kind,site,pool,gpus,bought_on,cost,life_months,watts_per_gpu,pue,usd_per_kwh\n"
    "one,gpus,north,cpu,4,2026-01-01,200000,60,1400,1.3,0.08\n"
)


def test_the_api_takes_a_register_and_shows_returns(db: Database, folder: Path) -> None:
    secrets = load_or_make(folder / "secrets.json")
    clock = ManualClock(NOON)
    with db.transaction() as tx:
        bootstrap(tx, secrets, model=False, now=NOON)
    services = Services(
        config=Config(data=folder), db=db, engine=SimulatedEngine([], clock), internal_queue=None,
        clock=clock, admissions=Admissions(db, jobs=list, clock=clock), replicas=None,
        artefacts=folder, signing_key="key", refuses_commands=None, wake=lambda: None,
    )  # fmt: skip
    operator = {"Authorization": f"Bearer {secrets.operator_key}"}
    with TestClient(build_api(services)) as api:
        sent = api.post("/v1/assets", json={"lots": LOTS}, headers=operator)
        assert (sent.status_code, sent.json()) == (201, {"lots_added": 1, "changes_added": 0})
        named = operator | {"Idempotency-Key": "again"}
        for _ in range(2):
            assert (
                api.post("/v1/assets", json={"lots": LOTS}, headers=named).json()["lots_added"] == 0
            )
        (lot,) = api.get("/v1/assets", headers=operator).json()["items"]
        assert (lot["name"], lot["cost"], lot["gpus"]) == ("one", "200000.00", 4)
        assert lot["book_value_usd"] == "183333.333333335"
        shown = api.get(
            "/v1/returns?from=2026-05-01&to=2026-06-01&by=pool", headers=operator
        ).json()
        assert [line["name"] for line in shown["lines"]] == ["cpu"]
        # Nothing was earned: what was paid is lost but for what it may be sold for.
        assert shown["total"]["npv_usd"] < -100_000 and "xirr_so_far" not in shown["total"]
        past = api.get(
            "/v1/returns?from=2026-05-01&to=2026-06-01&since_bought=true&discount=0",
            headers=operator,
        ).json()["total"]
        assert past["npv_so_far_usd"] == pytest.approx(past["book_value_usd"] - 200_000, abs=0.01)
        assert -1 < past["xirr_so_far"] < 0
        assert shown["total"]["gpu_hours"]["down"] == 31 * 24 * 4
        assert shown["total"]["depreciation_usd"] == pytest.approx(200_000 / 60, abs=0.01)
        for path, status in (
            ("/v1/returns?from=2026-06-01&to=2026-05-01", 422),
            ("/v1/returns?by=planet", 422),
        ):
            assert api.get(path, headers=operator).status_code == status
        bad = api.post("/v1/assets", json={"lots": LOTS.replace("60,", "-60,")}, headers=operator)
        assert bad.status_code == 422
        assert "line 2: life_months" in bad.json()["error"]["message"]
        marked = LOTS.replace("lot,", "curve,method,lot,").replace(
            "\none,", "\nbrokers,economic,two,"
        )
        curves = "curve,dated,source,months,share\nbrokers,2026-11-01,a list,0,1\nbrokers,2026-11-01,a list,24,0.5"
        lost = api.post("/v1/assets", json={"lots": marked}, headers=operator)
        assert "line 2: there is no curve 'brokers'; there are: none" in lost.text
        for _ in range(2):
            sent = api.post("/v1/assets", json={"lots": marked, "curves": curves}, headers=operator)
            assert sent.status_code == 201, sent.text
        found = api.get("/v1/assets", headers=operator).json()["items"][1]
        assert (found["method"], found["curve"]["source"]) == ("economic", "a list")
        assert float(found["book_value_usd"]) == pytest.approx(200_000 * (1 - 0.5 * 5 / 24))
        tenant = {"Authorization": f"Bearer {secrets.tenant_key}"}
        for path in ("/v1/assets", "/v1/returns"):
            assert api.get(path, headers=tenant).status_code == 403
