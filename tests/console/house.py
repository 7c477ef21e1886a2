"""A console over a real database, with somebody of every role, and browsers to sign in with."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from starlette.testclient import TestClient
from tests.core.databases import fresh
from tests.ledger.test_tampering import tell_a_story

from sublet.app.admissions import Admissions
from sublet.app.bootstrap import bootstrap, open_accounts
from sublet.app.control import build_api
from sublet.app.secrets import VAULT, Secrets, load_or_make
from sublet.app.services import Services
from sublet.config import Config
from sublet.core.clock import ManualClock
from sublet.core.db import Database
from sublet.core.vault import Vault
from sublet.engine.port import Node
from sublet.engine.simulated import SimulatedEngine
from sublet.fleet import store as fleet
from sublet.tenants import people
from sublet.tenants import store as tenants
from sublet.tenants.person import OF_TENANTS, PersonRole
from sublet.tenants.tenant import Tenant

NOON: Final = datetime(2026, 3, 2, 12, tzinfo=UTC)
PASSWORD: Final = "correct horse battery"
Answer = Any


@dataclass(frozen=True, kw_only=True)
class House:
    db: Database
    clock: ManualClock
    app: Any
    services: Services
    secrets: Secrets
    acme: Tenant
    other: Tenant

    def browser(self) -> "Browser":
        return Browser(self)

    def invite(self, role: PersonRole, *, email: str | None = None, other: bool = False) -> str:
        """Return the token of an invitation."""
        tenant = self.other if other else self.acme
        with self.db.transaction() as tx:
            _, token = people.invite(
                tx, role, tenant_id=tenant.id if role in OF_TENANTS else None, email=email,
                made_by=None, now=self.clock.now(),
            )  # fmt: skip
        return token

    def signed_in(self, role: PersonRole, *, email: str | None = None) -> "Browser":
        """Return the browser of somebody new who has this role."""
        browser = self.browser()
        browser.accept(self.invite(role), email=email or f"{uuid4().hex}@example.com")
        return browser


class Browser:
    """Keeps cookies, and sends forms with the token that their page has."""

    def __init__(self, house: House) -> None:
        self.client = TestClient(house.app, base_url="http://console.test", follow_redirects=False)

    def get(self, path: str, **query: Any) -> Answer:
        return self.client.get(f"/console{path}", params=query)

    @property
    def token(self) -> str:
        """Return the one of the page that is open: the account's, or the code's before it."""
        pages = (self.get(path) for path in ("/account", "/code"))
        page = next((page.text for page in pages if page.status_code == 200), "")
        found = re.search(r'name="token" value="(\w*)"', page)
        return "" if found is None else found[1]

    def post(self, path: str, **form: Any) -> Answer:
        return self.client.post(f"/console{path}", data={"token": self.token} | form)

    def accept(
        self, token: str, *, email: str, name: str = "Ada", password: str = PASSWORD
    ) -> Answer:
        return self.post(
            f"/welcome/{token}", name=name, email=email, password=password, password_again=password
        )

    def sign_in(self, email: str, password: str = PASSWORD, **more: str) -> Answer:
        return self.post("/sign-in", email=email, password=password, **more)


@contextmanager
def furnished(
    postgres_url: str, template: str, folder: Path, *, story: bool = False, **settings: Any
) -> Iterator[House]:
    """Make a console; with a `story`, of an instance in which everything happened once."""
    with fresh(postgres_url, template) as db:
        clock = ManualClock(tell_a_story(db) if story else NOON)
        secrets = load_or_make(folder / "secrets.json")
        Vault(folder / VAULT).prepare()
        engine = SimulatedEngine(
            [Node(name="a", gpu_model="h200", gpus=8, memory_bytes=1 << 40)], clock
        )
        with db.transaction() as tx:
            acme = bootstrap(tx, secrets, model=False, now=clock.now())
            other = tenants.create_tenant(tx, "other", now=clock.now())
            open_accounts(tx, other)
            fleet.observe_pools(tx, {"h200": 8}, notice_seconds=10, now=clock.now())
        services = Services(
            config=Config(data=folder, **settings), db=db, engine=engine, internal_queue=None,
            clock=clock, admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock),
            replicas=None, artefacts=folder, signing_key="key", refuses_commands=None,
            wake=lambda: None,
        )  # fmt: skip
        yield House(
            db=db, clock=clock, app=build_api(services), services=services, secrets=secrets,
            acme=acme, other=other,
        )  # fmt: skip
