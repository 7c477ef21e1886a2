"""A call that is named by `Idempotency-Key` takes effect once, however often it is sent."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from psycopg import sql
from tests.core.databases import fresh

from sublet.app import bootstrap, idempotency
from sublet.app.admissions import Admissions
from sublet.app.control import build_api
from sublet.app.idempotency import Document
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.money import Money
from sublet.engine.port import Node
from sublet.engine.simulated import SimulatedEngine
from sublet.fleet import store as fleet
from sublet.ledger import store as ledger
from sublet.planner import store as plans
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
DOLLAR: Final = 1_000_000_000
GPUS: Final = 64
LEASE: Final = {"command": ["sleep", "60"], "pool": "h200"}
WINDOW: Final = {
    "pool": "h200", "starts_at": "2026-01-01T12:00:00Z", "ends_at": "2026-01-01T13:00:00Z",
}  # fmt: skip
CONTRACT: Final = {
    "name": "bulk", "pool": "h200", "ends_at": "2026-03-01T00:00:00Z",
    "steps": [{"starts_at": "2026-02-01T00:00:00Z", "gpus": 2, "usd_per_gpu_hour": "2"}],
}  # fmt: skip
LOTS: Final = (
    "lot,kind,site,pool,gpus,bought_on,cost,life_months,watts_per_gpu\n"
    "one,gpus,north,h200,4,2025-01-01,200000,60,1400\n"
)
JOB: Final = {"command": ["sleep", "60"], "pool": "h200", "name": "training"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The API on a real database, with an operator's key."""

    app: FastAPI
    db: Database
    engine: SimulatedEngine
    operator: str

    def post(
        self, path: str, body: object, *, key: str | bytes | None = None, by: str | None = None
    ) -> httpx.Response:
        headers = []
        if key is not None:
            headers.append((b"Idempotency-Key", key.encode() if isinstance(key, str) else key))
        return self.call("POST", path, body, headers=headers, by=by)

    def get(self, path: str) -> httpx.Response:
        return self.call("GET", path)

    def call(
        self, method: str, path: str, body: object = None, *,
        headers: Sequence[tuple[bytes, bytes]] = (), by: str | None = None,
    ) -> httpx.Response:  # fmt: skip
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = [
            (b"Authorization", f"Bearer {by or self.operator}".encode()),
            (b"Content-Type", b"application/json"),
            *headers,
        ]

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return await client.request(method, path, content=content, headers=sent)

        return asyncio.run(ask())

    def stored(self) -> list[dict[str, Any]]:
        with self.db.transaction() as tx:
            return tx.execute("SELECT * FROM idempotency_key").fetchall()


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A tenant with a key, whose wallet the operator fills."""

    api: Api
    tenant: Tenant
    secret: str

    @property
    def credits(self) -> str:
        return f"/v1/tenants/{self.tenant.id}/credits"

    def balance(self) -> Money:
        with self.api.db.transaction() as tx:
            return ledger.get_account(tx, self.tenant.wallet).balance

    def leases(self) -> int:
        with self.api.db.transaction() as tx:
            row = tx.execute(
                "SELECT count(*) AS number FROM lease WHERE tenant_id = %s", [self.tenant.id]
            ).fetchone()
        assert row is not None
        return int(row["number"])


@pytest.fixture(scope="module")
def api(postgres_url: str, template: str) -> Iterator[Api]:
    clock = ManualClock(NOON)
    engine = SimulatedEngine(
        [Node(name="n1", gpu_model="h200", gpus=GPUS, memory_bytes=GPUS << 30)], clock
    )
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            fleet.observe_pools(tx, {"h200": GPUS, "b200": 1}, notice_seconds=10, now=NOON)
            bootstrap.first_prices(tx, ["h200", "b200"], now=NOON)
            _, secret = tenants.create_key(tx, None, "operator", now=NOON)
        services = Services(
            config=Config(data=Path("/nowhere"), model=False),
            db=db,
            engine=engine,
            internal_queue=engine,
            clock=clock,
            admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock),
            replicas=None,
            signing_key="signs",
            refuses_commands=None,
            artefacts=Path("/nowhere"),
            wake=lambda: None,
        )
        yield Api(app=build_api(services), db=db, engine=engine, operator=secret)


def customer(api: Api, *, dollars: int = 0) -> Customer:
    with api.db.transaction() as tx:
        tenant = tenants.create_tenant(tx, f"acme {new_id()}", now=NOON)
        bootstrap.open_accounts(tx, tenant)
        if dollars:
            bootstrap.top_up(tx, tenant, Money(dollars * DOLLAR), payment=1, now=NOON)
        _, secret = tenants.create_key(tx, tenant.id, "laptop", now=NOON)
    return Customer(api=api, tenant=tenant, secret=secret)


def replayed(answer: httpx.Response) -> bool:
    said: str | None = answer.headers.get("Idempotency-Replayed")
    return said == "true"


def is_refused(answer: httpx.Response, status: int, code: str, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert not replayed(answer)


def test_a_repeat_is_answered_the_same_to_the_byte_and_changes_nothing(api: Api) -> None:
    acme, key = customer(api), str(new_id())
    first = api.post(acme.credits, {"amount_usd": "5"}, key=key)
    again = api.post(acme.credits, {"amount_usd": "5"}, key=key)
    assert first.status_code == again.status_code == 200
    assert first.content == again.content
    assert (replayed(first), replayed(again)) == (False, True)
    assert acme.balance() == Money(5 * DOLLAR)


def test_the_answer_is_the_one_of_then(api: Api) -> None:
    acme, key = customer(api), str(new_id())
    api.post(acme.credits, {"amount_usd": "5"}, key=key)
    api.post(acme.credits, {"amount_usd": "1"}, key=str(new_id()))
    assert api.post(acme.credits, {"amount_usd": "5"}, key=key).json()["balance_usd"] == "5.00"
    assert acme.balance() == Money(6 * DOLLAR)


def test_a_named_answer_looks_like_an_unnamed_one(api: Api) -> None:
    name = f"initech {new_id()}"
    made = api.post("/v1/tenants", {"name": name}, key=str(new_id()))
    assert made.status_code == 201
    shown = api.get(f"/v1/tenants/{made.json()['id']}")
    assert shown.content == made.content


def test_without_a_key_every_call_counts(api: Api) -> None:
    acme, before = customer(api), len(api.stored())
    for _ in range(2):
        assert not replayed(api.post(acme.credits, {"amount_usd": "5"}))
    assert acme.balance() == Money(10 * DOLLAR)
    assert len(api.stored()) == before


def test_a_body_is_the_same_whatever_its_spaces_and_order(api: Api) -> None:
    acme, key, payment = customer(api), str(new_id()), str(new_id())
    api.post(acme.credits, {"amount_usd": "5", "id": payment}, key=key)
    spaced = f'{{ "id":\n"{payment}", "amount_usd" : "5" }}'.encode()
    assert replayed(api.post(acme.credits, spaced, key=key))


def test_a_key_names_one_body(api: Api) -> None:
    acme, key = customer(api), str(new_id())
    api.post(acme.credits, {"amount_usd": "5"}, key=key)
    other = api.post(acme.credits, {"amount_usd": "6"}, key=key)
    is_refused(other, 422, "invalid", "with another body")
    assert acme.balance() == Money(5 * DOLLAR)


def test_a_key_names_one_path(api: Api) -> None:
    acme, initech, key = customer(api), customer(api), str(new_id())
    api.post(acme.credits, {"amount_usd": "5"}, key=key)
    other = api.post(initech.credits, {"amount_usd": "5"}, key=key)
    is_refused(other, 422, "invalid", f"already used for POST {acme.credits}")
    assert initech.balance() == Money(0)


def test_a_key_is_its_callers_own(api: Api) -> None:
    acme, initech, key = customer(api, dollars=10), customer(api, dollars=10), str(new_id())
    made = [api.post("/v1/leases", LEASE, key=key, by=who.secret) for who in (acme, initech)]
    assert [answer.status_code for answer in made] == [201, 201]
    assert made[0].json()["id"] != made[1].json()["id"]
    assert not any(map(replayed, made))
    assert {row["caller"] for row in api.stored() if row["key"] == key} == {
        f"tenant:{acme.tenant.id}", f"tenant:{initech.tenant.id}",
    }  # fmt: skip


def test_two_keys_of_one_tenant_are_one_caller(api: Api) -> None:
    acme, key = customer(api, dollars=10), str(new_id())
    second = api.post("/v1/keys", {"name": "second"}, by=acme.secret).json()["key"]
    first = api.post("/v1/leases", LEASE, key=key, by=acme.secret)
    again = api.post("/v1/leases", LEASE, key=key, by=second)
    assert replayed(again) and again.content == first.content
    assert acme.leases() == 1


def test_duplicates_at_once_credit_once(api: Api) -> None:
    acme, key, start = customer(api), str(new_id()), Barrier(6)

    def send(_: int) -> httpx.Response:
        start.wait()
        return api.post(acme.credits, {"amount_usd": "5"}, key=key)

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(send, range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sum(map(replayed, answers)) == 5
    assert acme.balance() == Money(5 * DOLLAR)


def test_a_duplicate_does_not_wait_for_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "WAIT_SECONDS", 0.02)
    acme, key = customer(api), str(new_id())
    with api.db.transaction() as first:
        first.execute(idempotency.QUERIES["try_lock_key"], {"caller": "operator", "key": key})
        second = api.post(acme.credits, {"amount_usd": "5"}, key=key)
    is_refused(second, 409, "conflict", "still under way")
    assert second.json()["error"]["retryable"] is True
    assert api.post(acme.credits, {"amount_usd": "5"}, key=key).status_code == 200


def test_what_failed_may_be_sent_again(api: Api) -> None:
    acme, key = customer(api), str(new_id())
    is_refused(
        api.post("/v1/leases", LEASE, key=key, by=acme.secret), 402, "insufficient_credit", ""
    )
    # Not even its body was kept.
    assert api.post(acme.credits, {"amount_usd": "5"}).status_code == 200
    other = api.post("/v1/leases", LEASE | {"gpus": 2}, key=key, by=acme.secret)
    assert other.status_code == 201 and not replayed(other)
    assert acme.leases() == 1


def test_a_crash_before_the_commit_leaves_neither_money_nor_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme, key = customer(api), str(new_id())
    seen: list[Money] = []

    def crash(_: object) -> None:
        seen.append(acme.balance())
        raise RuntimeError("the power went out")

    with monkeypatch.context() as broken:
        broken.setattr(idempotency, "Json", crash)
        is_refused(api.post(acme.credits, {"amount_usd": "5"}, key=key), 500, "internal", "")
    assert seen == [Money(0)]  # the effect was there, and nobody else saw it
    assert acme.balance() == Money(0)
    assert not [row for row in api.stored() if row["key"] == key]
    assert not replayed(api.post(acme.credits, {"amount_usd": "5"}, key=key))
    assert acme.balance() == Money(5 * DOLLAR)


def test_a_lease_is_replayed_when_there_is_no_room_for_another(api: Api) -> None:
    acme, key = customer(api, dollars=10), str(new_id())
    last = LEASE | {"pool": "b200"}  # it has one
    first = api.post("/v1/leases", last, key=key, by=acme.secret)
    assert first.status_code == 201
    is_refused(api.post("/v1/leases", last, by=acme.secret), 409, "refused", "no surplus")
    again = api.post("/v1/leases", last, key=key, by=acme.secret)
    assert replayed(again) and again.content == first.content and again.status_code == 201


@pytest.mark.parametrize("path", ["/v1/keys", "/v1/tenants/{}/keys"])
def test_a_secret_is_shown_once_and_never_stored(api: Api, path: str) -> None:
    acme, key = customer(api), str(new_id())
    path = path.format(acme.tenant.id)
    made = api.post(path, {"name": "ci"}, key=key)
    assert made.status_code == 201 and made.json()["key"].startswith("sk-sublet-")
    again = api.post(path, {"name": "ci"}, key=key)
    is_refused(again, 409, "refused", made.json()["id"])
    assert again.json()["error"]["retryable"] is False
    assert made.json()["key"] not in again.text
    assert made.json()["key"] not in str(api.stored())
    names = [one["name"] for one in api.get(path).json()["items"]]
    assert names.count("ci") == 1


def test_an_internal_job_is_queued_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its effect is in the engine, so the repeat finds it there even if no answer was kept."""
    key, before = str(new_id()), len(api.engine.internal_jobs())
    with monkeypatch.context() as broken:
        broken.setattr(idempotency, "Json", int)
        assert api.post("/v1/internal-jobs", JOB, key=key).status_code == 500
    first = api.post("/v1/internal-jobs", JOB, key=key)
    again = api.post("/v1/internal-jobs", JOB, key=key)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert (replayed(first), replayed(again)) == (False, True)
    assert len(api.engine.internal_jobs()) == before + 1
    other = api.post("/v1/internal-jobs", JOB | {"gpus": 2}, key=key)
    is_refused(other, 422, "invalid", "with another body")
    api.engine.cancel_internal(first.json()["id"])


def test_an_id_in_the_body_works_as_before(api: Api) -> None:
    acme, payment = customer(api), {"amount_usd": "5", "id": str(new_id())}
    for key in (None, str(new_id()), str(new_id())):
        assert not replayed(api.post(acme.credits, payment, key=key))
    assert acme.balance() == Money(5 * DOLLAR)


@pytest.mark.parametrize(
    "key", ["", "k" * 256, b"a\x00b", b"a\tb", "caf\u00e9", b"\xff", b"a\x7f", "a\nb"], ids=repr
)
def test_a_key_that_cannot_be_one_is_refused(api: Api, key: str | bytes) -> None:
    acme = customer(api)
    answer = api.post(acme.credits, {"amount_usd": "5"}, key=key)
    is_refused(answer, 422, "invalid", "Idempotency-Key")
    assert acme.balance() == Money(0)


@pytest.mark.parametrize("key", ["k" * 255, "a b/c'\"\\%;--", "~!"])
def test_every_printable_key_is_one(api: Api, key: str) -> None:
    acme = customer(api)
    with api.db.transaction() as tx:
        before = tx.execute("SELECT 1 FROM idempotency_key WHERE key = %s", [key]).fetchone()
    assert before is None
    assert api.post(acme.credits, {"amount_usd": "5"}, key=key).status_code == 200
    assert replayed(api.post(acme.credits, {"amount_usd": "5"}, key=key))


def test_a_call_has_one_name(api: Api) -> None:
    acme = customer(api)
    names = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"b")]
    answer = api.call("POST", acme.credits, {"amount_usd": "5"}, headers=names)
    is_refused(answer, 422, "invalid", "send one Idempotency-Key")


def posts(api: Api) -> dict[str, dict[str, Any]]:
    document = api.get("/openapi.json").json()
    return {path: calls["post"] for path, calls in document["paths"].items() if "post" in calls}


def test_every_call_that_makes_something_may_be_named(api: Api) -> None:
    for path, call in posts(api).items():
        named = [p for p in call.get("parameters", []) if p["name"] == "Idempotency-Key"]
        assert [(p["in"], p["required"]) for p in named] == [("header", False)], path


def rows(api: Api) -> dict[str, int]:
    """Count what there is, in every table and in the cluster."""
    with api.db.transaction() as tx:
        tables = [
            row["name"]
            for row in tx.execute(
                "SELECT relname AS name FROM pg_class WHERE relkind = 'r'"
                " AND relnamespace = 'public'::regnamespace"
            )
        ]
        counts = tx.execute(
            sql.SQL(" UNION ALL ").join(
                sql.SQL("SELECT {} AS name, count(*) AS rows FROM {}").format(
                    sql.Literal(table), sql.Identifier(table)
                )
                for table in tables
            )
        ).fetchall()
    found = {row["name"]: row["rows"] for row in counts}
    return found | {"jobs in the cluster": len(api.engine.internal_jobs())}


# Of each call: what is sent, whether the operator sends it, and which tables it adds to.
CALLS: Final[dict[str, tuple[Document, bool, set[str]]]] = {
    "/v1/tenants": ({"name": "acme"}, True, {"tenant"}),
    "/v1/tenants/{tenant_id}/credits": ({"amount_usd": "5"}, True, {"transfer"}),
    "/v1/tenants/{tenant_id}/keys": ({"name": "ci"}, True, {"api_key"}),
    "/v1/keys": ({"name": "ci"}, False, {"api_key"}),
    "/v1/leases": (LEASE, False, {"lease", "transfer", "open_hold"}),
    "/v1/quotes": ({"pool": "h200"}, False, {"quote"}),
    "/v1/reservations": (WINDOW, False, {"reservation", "transfer", "open_hold"}),
    "/v1/reservations/{reservation_id}/resales": ({"gpus": 1}, False, {"resale"}),
    "/v1/contracts": (CONTRACT, True, {"contract"}),
    "/v1/internal-jobs": (JOB, True, {"jobs in the cluster"}),
    "/v1/assets": ({"lots": LOTS}, True, {"asset_lot"}),
}


def test_each_of_them_sent_again_under_its_name_adds_nothing(api: Api) -> None:
    assert set(CALLS) <= set(posts(api))
    acme = customer(api, dollars=10_000)
    plan_nothing_inside(api)
    for path, (body, operator, added) in CALLS.items():
        sent = body | ({"tenant_id": str(acme.tenant.id)} if path == "/v1/contracts" else {})
        by, key = None if operator else acme.secret, str(new_id())
        window = api.post("/v1/reservations", WINDOW, by=acme.secret).json()["id"]
        where = path.format(tenant_id=acme.tenant.id, reservation_id=window)
        before = rows(api)
        first = api.post(where, sent, key=key, by=by)
        assert first.status_code in (200, 201), first.text
        after = rows(api)
        grown = {name for name in after if after[name] > before.get(name, 0)}
        assert added | {"idempotency_key"} <= grown, (path, grown)
        again = api.post(where, sent, key=key, by=by)
        assert rows(api) == after, path
        if "key" in first.json():
            is_refused(again, 409, "refused", first.json()["id"])
        else:
            assert replayed(again) and again.content == first.content, again.text
        for other in ({"name": "other"}, {"name": "other", "gpus": 2}, {"amount_usd": "6"}):
            changed = {name: value for name, value in other.items() if name in sent}
            if changed:
                is_refused(
                    api.post(where, sent | changed, key=key, by=by), 422, "invalid", "another body"
                )
        assert rows(api) == after, path


def plan_nothing_inside(api: Api) -> None:
    """Let the planner say that all of it may be promised."""
    firm = dict.fromkeys(("1h", "4h", "24h"), GPUS)
    document = {
        "firm": firm, "later": {name: [GPUS] * 168 for name in firm}, "reasons": [],
        "known_hours": 900.0,
        "band": [{"ahead_seconds": ahead, "demand": {"0.5": 0}} for ahead in (300, 86_400)],
    }  # fmt: skip
    with api.db.transaction() as tx:
        plans.put_plans(tx, {"h200": document}, now=NOON)
