"""What can never be sold, over the API and by the command: a clear error, and nothing changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, LiteralString

import httpx
import pytest
from tests.app.serving import served
from tests.cli.fake_api import Sublet, runner, write_ready
from tests.core.databases import fresh

from sublet.app import bootstrap
from sublet.app.admissions import Admissions
from sublet.app.control import build_api
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.money import parse_amount
from sublet.engine.port import Node
from sublet.engine.simulated import SimulatedEngine
from sublet.fleet import store as fleet
from sublet.tenants import store as tenants

NOON: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)
POOL: Final = "h200"
WINDOW: Final = {"starts_at": "2026-01-01T13:00:00Z", "ends_at": "2026-01-01T15:00:00Z"}
# Everything that a sale, or the change of a policy, could leave behind.
_TABLES: Final[tuple[LiteralString, ...]] = (
    "account", "coming_capacity", "contract", "contract_break", "contract_delivery", "lease", "lease_event", "notice_scale", "pool",
    "pool_event", "price", "quote", "resale", "reservation", "reservation_block", "transfer",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Eight GPUs, an operator, a tenant, a window that is sold and a quote that is used."""

    url: str
    db: Database
    keys: dict[str, str]
    tenant: str
    window: str
    quote: str

    def call(self, who: str, method: str, path: str, body: object) -> httpx.Response:
        return httpx.request(
            method, self.url + path, json=body,
            headers={"Authorization": f"Bearer {self.keys[who]}"}, timeout=180,
        )  # fmt: skip

    def records(self) -> list[str]:
        """Return a digest of each table."""
        with self.db.transaction() as tx:
            return [
                str(tx.execute(_DIGEST + table + b" AS t").fetchone())
                for table in (name.encode() for name in _TABLES)
            ]


_DIGEST: Final = b"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM "


@pytest.fixture(scope="module")
def market(postgres_url: str, template: str) -> Iterator[Market]:
    clock = ManualClock(NOON)
    engine = SimulatedEngine([Node(name="n1", gpu_model=POOL, gpus=8, memory_bytes=8 << 30)], clock)
    with fresh(postgres_url, template) as db:
        with db.transaction() as tx:
            fleet.observe_pools(tx, {POOL: 8}, notice_seconds=60, now=NOON)
            bootstrap.first_prices(tx, [POOL], now=NOON)
            tenant = tenants.create_tenant(tx, "acme", now=NOON)
            bootstrap.open_accounts(tx, tenant)
            bootstrap.top_up(tx, tenant, parse_amount("100000"), payment=1, now=NOON)
            keys = {
                "operator": tenants.create_key(tx, None, "operator", now=NOON)[1],
                "tenant": tenants.create_key(tx, tenant.id, "laptop", now=NOON)[1],
            }
        services = Services(
            config=Config(data=Path("/nowhere"), model=False), db=db, engine=engine,
            internal_queue=engine, clock=clock, replicas=None, artefacts=Path("/nowhere"),
            admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock),
            signing_key="signs", refuses_commands=None, wake=lambda: None,
        )  # fmt: skip
        with served(build_api(services)) as url:
            made = Market(url=url, db=db, keys=keys, tenant=str(tenant.id), window="", quote="")
            window = made.call("tenant", "POST", "/v1/reservations", {**WINDOW, "gpus": 4})
            quote = made.call("tenant", "POST", "/v1/quotes", {"gpus": 1})
            used = {"quote": quote.json()["id"], "command": ["true"]}
            assert made.call("tenant", "POST", "/v1/leases", used).status_code == 201
            yield Market(
                url=url, db=db, keys=keys, tenant=str(tenant.id), window=window.json()["id"],
                quote=quote.json()["id"],
            )  # fmt: skip


@pytest.fixture
def sublet(
    market: Market, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Sublet:  # fmt: skip
    for name in ("DATA", "URL", "KEY", "CA"):
        monkeypatch.delenv(f"SUBLET_{name}", raising=False)
    write_ready(
        folder, market.url, operator_key=market.keys["operator"], tenant="acme",
        tenant_key=market.keys["tenant"],
    )  # fmt: skip
    monkeypatch.setenv("SUBLET_DATA", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    return runner(capsys)


def contract(*steps: tuple[str, object], ends_at: str = "2026-03-01T00:00:00Z") -> dict[str, Any]:
    return {
        "name": "bulk",
        "ends_at": ends_at,
        "steps": [
            {"starts_at": start, "gpus": gpus, "usd_per_gpu_hour": "1.90"} for start, gpus in steps
        ],
    }


FEBRUARY: Final = "2026-02-01T00:00:00Z"
MIDDLE: Final = "2026-02-15T00:00:00Z"
LEASE: Final = {"command": ["true"]}
# What it is: who calls, method, path, body, and words of the answer.
CALLS: Final[dict[str, tuple[str, str, str, Any, str]]] = {
    "ramp steps of one start": (
        "operator", "POST", "/v1/contracts", contract((FEBRUARY, 1), (FEBRUARY, 2)),
        "steps 1 and 2 overlap",
    ),
    "ramp steps that go back": (
        "operator", "POST", "/v1/contracts", contract((MIDDLE, 1), (FEBRUARY, 2)),
        "steps 1 and 2 overlap",
    ),
    "a contract in the past": (
        "operator", "POST", "/v1/contracts", contract(("2025-12-01T00:00:00Z", 1)), "in the past",
    ),
    "a contract that ends before its last step": (
        "operator", "POST", "/v1/contracts",
        contract((FEBRUARY, 1), (MIDDLE, 2), ends_at="2026-02-10T00:00:00Z"), "its last step starts",
    ),
    "a contract larger than the fleet": (
        "operator", "POST", "/v1/contracts", contract((FEBRUARY, 1), (MIDDLE, 9)),
        "step 2: 9 GPUs are more than pool h200 has: 8",
    ),
    "coming capacity in the past": (
        "operator", "POST", "/v1/coming-capacity",
        {"name": "hall 2", "gpus": 8, "ready_at": "2025-12-01T00:00:00Z"}, "is over",
    ),
    "coming capacity of no GPUs": (
        "operator", "POST", "/v1/coming-capacity",
        {"name": "hall 2", "gpus": 0, "ready_at": FEBRUARY}, "gpus",
    ),
    "a contract over what is sold already": (
        "operator", "POST", "/v1/contracts",
        contract(("2026-01-01T12:00:00Z", 5), ends_at="2026-01-02T12:00:00Z"),
        "4 are not promised to others then",
    ),
    "a contract of no GPUs": (
        "operator", "POST", "/v1/contracts", contract((FEBRUARY, 0)), "steps.0.gpus",
    ),
    "a contract of half a GPU": (
        "operator", "POST", "/v1/contracts", contract((FEBRUARY, 0.5)), "steps.0.gpus",
    ),
    "a contract without a time zone": (
        "operator", "POST", "/v1/contracts", contract(("2026-02-01T00:00:00", 1)), "time zone",
    ),
    "more than all of what is late": (
        "operator", "POST", "/v1/contracts", {**contract((FEBRUARY, 1)), "late_percent": 101},
        "late_percent",
    ),
    "a window in the past": (
        "tenant", "POST", "/v1/reservations",
        {"starts_at": "2025-12-31T00:00:00Z", "ends_at": "2026-01-02T00:00:00Z"}, "in the past",
    ),
    "a window that ends before it starts": (
        "tenant", "POST", "/v1/reservations",
        {"starts_at": WINDOW["ends_at"], "ends_at": WINDOW["starts_at"]}, "before it starts",
    ),
    "a window that ends as it starts": (
        "tenant", "POST", "/v1/reservations",
        {"starts_at": WINDOW["ends_at"], "ends_at": WINDOW["ends_at"]}, "before it starts",
    ),
    "a window of no GPUs": (
        "tenant", "POST", "/v1/reservations", {**WINDOW, "gpus": 0}, "gpus",
    ),
    "a window of half a GPU": (
        "tenant", "POST", "/v1/reservations", {**WINDOW, "gpus": 0.5}, "gpus",
    ),
    "a window larger than the fleet": (
        "tenant", "POST", "/v1/reservations", {**WINDOW, "gpus": 9}, "pool h200 has 8 GPUs",
    ),
    "a quote of a window in the past": (
        "tenant", "POST", "/v1/quotes",
        {"tier": "reserved", "starts_at": "2025-12-31T00:00:00Z",
         "ends_at": "2026-01-02T00:00:00Z"}, "in the past",
    ),
    "a quote of a window that ends before it starts": (
        "tenant", "POST", "/v1/quotes",
        {"tier": "reserved", "starts_at": WINDOW["ends_at"], "ends_at": WINDOW["starts_at"]},
        "before it starts",
    ),
    "a quote of no GPUs": ("tenant", "POST", "/v1/quotes", {"gpus": 0}, "gpus"),
    "a lease of no GPUs": ("tenant", "POST", "/v1/leases", {**LEASE, "gpus": 0}, "gpus"),
    "a lease of half a GPU": ("tenant", "POST", "/v1/leases", {**LEASE, "gpus": 0.5}, "gpus"),
    "a lease of -1 GPUs": ("tenant", "POST", "/v1/leases", {**LEASE, "gpus": -1}, "gpus"),
    "a quote reused for a lease": (
        "tenant", "POST", "/v1/leases", {**LEASE, "quote": "USED"}, "a quote is used once",
    ),
    "a resale of half a GPU": (
        "tenant", "POST", "/v1/reservations/WINDOW/resales", {"gpus": 0.5}, "gpus",
    ),
    "a resale of more than was booked": (
        "tenant", "POST", "/v1/reservations/WINDOW/resales", {"gpus": 5}, "",
    ),
    "a schedule that falls": (
        "operator", "PUT", "/v1/pools/h200/notice-prices",
        {"steps": [{"notice_seconds": 60, "percent": 120}, {"notice_seconds": 90, "percent": 110}]},
        "step 2: a longer notice costs no less",
    ),
    "a schedule below the price": (
        "operator", "PUT", "/v1/pools/h200/notice-prices",
        {"steps": [{"notice_seconds": 60, "percent": 99}]}, "step 1: 99 per cent",
    ),
}  # fmt: skip
# Policies under which the window would not have been sold.
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "nothing is lent": {"lendable": False},
    "less is lent than is sold": {"lending_limit": 3},
    "more is kept than is left": {"reserve": 5},
    "quiet hours within the window": {"quiet_hours": "13:30-14:00"},
    "a shorter notice than was sold": {"notice_seconds": 30},
}


def filled(market: Market, body: Any) -> Any:
    if body.get("steps") and "name" in body:
        return {**body, "tenant_id": market.tenant}
    return {**body, "quote": market.quote} if body.get("quote") == "USED" else body


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_a_clear_error_and_changes_nothing(market: Market, name: str) -> None:
    who, method, path, body, words = CALLS[name]
    before = market.records()
    answer = market.call(who, method, path.replace("WINDOW", market.window), filled(market, body))
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert error["code"] in {"invalid", "refused"}
    assert words in error["message"], error["message"]
    assert len(error["message"]) > 20, "it says what was wrong"
    assert market.records() == before


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_would_strand_a_sold_window_lists_it_and_changes_nothing(
    market: Market, name: str
) -> None:
    before = market.records()
    answer = market.call("operator", "PATCH", f"/v1/pools/{POOL}", POLICIES[name])
    assert answer.status_code == 409, answer.text
    error = answer.json()["error"]
    assert error["code"] == "unconfirmed"
    assert f"reservation {market.window}" in error["message"]
    assert market.window in {hit["id"] for hit in error["hits"]}
    assert market.records() == before


SIGN: Final = ("contract", "sign", "bulk", "--tenant", "acme", "--until", "2026-03-01T00:00Z")
# The same by the command: its words, and words of what it says.
COMMANDS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "ramp steps of one start": (
        (*SIGN, "--step", "2026-02-01T00:00Z=1@1.90", "--step", "2026-02-01T00:00Z=2@1.80"),
        "steps 1 and 2 overlap",
    ),
    "a contract in the past": ((*SIGN, "--step", "2025-12-01T00:00Z=1@1.90"), "in the past"),
    "a contract that ends before its last step": (
        (*SIGN, "--step", "2026-04-01T00:00Z=1@1.90"), "its last step starts",
    ),
    "a contract larger than the fleet": (
        (*SIGN, "--step", "2026-02-01T00:00Z=9@1.90"), "9 GPUs are more than pool h200 has: 8",
    ),
    "coming capacity in the past": (
        ("coming", "declare", "hall 2", "--gpus", "8", "--ready", "2025-12-01T00:00Z"), "is over",
    ),
    "coming capacity of no GPUs": (
        ("coming", "declare", "hall 2", "--gpus", "0", "--ready", "2026-02-01T00:00Z"), "--gpus",
    ),
    "a contract of no GPUs": ((*SIGN, "--step", "2026-02-01T00:00Z=0@1.90"), "gpus"),
    "a contract of half a GPU": (
        (*SIGN, "--step", "2026-02-01T00:00Z=0.5@1.90"), "is no step such as",
    ),
    "a window in the past": (
        ("reservation", "create", "2025-12-31T00:00Z/2026-01-02T00:00Z"), "in the past",
    ),
    "a window that ends before it starts": (
        ("reservation", "create", "2026-01-01T15:00Z/2026-01-01T13:00Z"), "before it starts",
    ),
    "a window of no GPUs": (
        ("reservation", "create", "2026-01-01T13:00Z/2026-01-01T15:00Z", "--gpus", "0"), "--gpus",
    ),
    "a window of half a GPU": (
        ("reservation", "create", "2026-01-01T13:00Z/2026-01-01T15:00Z", "--gpus", "0.5"), "--gpus",
    ),
    "a window larger than the fleet": (
        ("reservation", "create", "2026-01-01T13:00Z/2026-01-01T15:00Z", "--gpus", "9"),
        "pool h200 has 8 GPUs",
    ),
    "a lease of no GPUs": (("lease", "create", "--gpus", "0", "--", "true"), "--gpus"),
    "a lease of half a GPU": (("lease", "create", "--gpus", "0.5", "--", "true"), "--gpus"),
    "a quote reused": (("lease", "create", "--quote", "USED", "--", "true"), "a quote is used once"),
    "a quote of a window in the past": (
        ("quote", "--window", "2025-12-31T00:00Z/2026-01-02T00:00Z"), "in the past",
    ),
    "a policy that strands the window": (("pool", "set", POOL, "--limit", "3"), "reservation"),
    "a policy that sells nothing any more": (
        ("pool", "set", POOL, "--not-lendable"), "Nothing was changed",
    ),
    "a schedule that falls": (
        ("price", "notice", POOL, "10m=120", "1h=110"), "a longer notice costs no less",
    ),
    "a schedule of words": (("price", "notice", POOL, "soon=120"), "is not a duration"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_is_a_clear_error_and_changes_nothing(
    market: Market, sublet: Sublet, name: str
) -> None:
    words, said = COMMANDS[name]
    before = market.records()
    result = sublet(*(market.quote if word == "USED" else word for word in words))
    assert result.code in {1, 2}, (result.code, result.out, result.err)
    assert said in " ".join(result.err.split()), result.err
    assert "Traceback" not in result.err
    assert market.records() == before
