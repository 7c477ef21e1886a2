"""The ledger over the API: to the operator alone, whole, and of one moment."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from starlette.testclient import TestClient
from tests.ledger.test_journal import balances, check, ours

from sublet.app.admissions import Admissions
from sublet.app.bootstrap import bootstrap, open_accounts, top_up
from sublet.app.control import build_api
from sublet.app.routes import ledger as routes
from sublet.app.secrets import Secrets, load_or_make
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.errors import Unavailable
from sublet.core.money import Money
from sublet.engine.simulated import SimulatedEngine
from sublet.ledger import store
from sublet.ledger.journal import Format
from sublet.tenants import store as tenants

pytestmark = pytest.mark.real

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NAMES = ("Ünïcode & Söhne", "a, b; c | d", '"quoted"\\', "type:A", "支払い 🧾")


@pytest.fixture
def secrets(folder: Path) -> Secrets:
    return load_or_make(folder / "secrets.json")


@pytest.fixture
def services(db: Database, folder: Path, secrets: Secrets) -> Services:
    """An instance with tenants of odd names, each with money."""
    clock = ManualClock(NOON)
    engine = SimulatedEngine([], clock)
    with db.transaction() as tx:
        bootstrap(tx, secrets, model=False, now=NOON)
        for name in NAMES:
            tenant = tenants.create_tenant(tx, name, now=NOON)
            open_accounts(tx, tenant)
            top_up(tx, tenant, Money(123_456_789_012), payment=name, now=NOON)
    return Services(
        config=Config(data=folder), db=db, engine=engine, internal_queue=None, clock=clock,
        admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock), replicas=None,
        artefacts=folder, signing_key="key", refuses_commands=None, wake=lambda: None,
    )  # fmt: skip


@pytest.fixture
def api(services: Services) -> Iterator[TestClient]:
    with TestClient(build_api(services)) as client:
        yield client


def key(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("form", Format)
def test_the_operator_gets_a_ledger_that_another_program_accepts(
    api: TestClient, db: Database, secrets: Secrets, folder: Path, form: Format
) -> None:
    path = f"/v1/ledger/export?format={form}"
    answer = api.get(path, headers=key(secrets.operator_key))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    (folder / "ledger").write_bytes(answer.content)
    assert check(form, folder / "ledger") == ""
    with db.transaction() as tx:
        assert balances(form, folder / "ledger") == ours(store.list_accounts(tx))
    assert NAMES[0] in answer.text


def test_nobody_else_gets_it(api: TestClient, secrets: Secrets) -> None:
    path = "/v1/ledger/export"
    assert api.get(path).status_code == 401
    assert api.get(path, headers=key(secrets.tenant_key)).status_code == 403
    wrong = api.get(f"{path}?format=excel", headers=key(secrets.operator_key))
    assert wrong.status_code == 422


@pytest.mark.parametrize("form", Format)
def test_money_that_moves_meanwhile_is_not_in_it(
    services: Services, db: Database, folder: Path, monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    monkeypatch.setattr(routes, "_PIECE_CHARACTERS", 1)
    with db.transaction() as tx:
        before = store.list_accounts(tx)
    pieces = routes._pieces(services, form)
    text = next(pieces)
    with db.transaction() as tx:
        demo = tenants.find_tenant(tx, "demo")
        assert demo is not None
        top_up(tx, demo, Money(1), payment=uuid4(), now=NOON)
    text += "".join(pieces)
    (folder / "ledger").write_text(text, encoding="utf-8")
    assert check(form, folder / "ledger") == ""
    assert balances(form, folder / "ledger") == ours(before)


def test_a_reader_that_leaves_gives_its_connection_back(
    services: Services, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_PIECE_CHARACTERS", 1)
    pieces = routes._pieces(services, Format.HLEDGER)
    next(pieces)
    open_views = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND state = 'idle in transaction'"
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert connection.execute(open_views).fetchone() == (1,)
        pieces.close()
        assert connection.execute(open_views).fetchone() == (0,)


def test_a_database_that_is_away_is_said_before_the_answer_begins(
    services: Services, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise Unavailable("the database did not answer")

    monkeypatch.setattr(routes.ledger, "list_accounts", away)
    with TestClient(build_api(services)) as client:
        answer = client.get("/v1/ledger/export", headers=key(secrets.operator_key))
    assert answer.status_code == 503
