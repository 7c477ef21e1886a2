"""A running gateway process, its database, and a scripted replica behind it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from openai import OpenAI
from tests.fakes.replica import CONTEXT_TOKENS, FakeReplica

from sublet.core.audit import Findings
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.money import Money, Rate
from sublet.core.net import free_port
from sublet.core.vault import Vault
from sublet.ledger import audit as ledger_audit
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Account, Transfer
from sublet.market import store as market
from sublet.market.price import cache_read_sku, input_sku, output_sku
from sublet.metering import audit as metering_audit
from sublet.models import store as models
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState
from sublet.tenants import store as tenants
from sublet.tenants.tenant import ApiKey, Tenant

MODEL: Final = "fake"
INPUT, CACHED, OUTPUT = 1_000, 100, 4_000  # nanos a token
_START: Final = (
    "import json, logging, sys; from pathlib import Path\n"
    "from sublet.core import failpoint\n"
    "from sublet.core.errors import Misconfigured\n"
    "from sublet.gateway.server import serve; from sublet.gateway.settings import Settings\n"
    "logging.basicConfig(level='INFO', format='%(levelname)s %(message)s')\n"
    "given = json.loads(sys.argv[1])\n"
    "failpoint.arm({failpoint.VARIABLE: given.pop('failpoints', None)})\n"
    "most = given.pop('file_bytes', None)\n"
    "import resource, signal\n"
    "if most is not None: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "if most is not None: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
    "paths = ('artefacts', 'certificate', 'private_key', 'spool', 'tuning', 'vault')\n"
    "given |= {k: Path(given[k]) for k in paths if given.get(k)}\n"
    "try: serve(Settings(**given))\n"
    "except Misconfigured as error: print(error); sys.exit(2)\n"
)

CLIENTS: list[OpenAI] = []  # closed after each test, with the streams that it broke off


def eventually(what: Callable[[], bool], *, seconds: float = 180) -> None:
    """Wait until `what` is so."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not become so in time"
        time.sleep(0.01)


@dataclass(slots=True)
class Gateway:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def memory_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


@dataclass(slots=True, kw_only=True)
class Stage:
    db: Database
    database_url: str
    folder: Path
    fake: FakeReplica
    replica_url: str
    gateway: Gateway | None = None
    replica_id: UUID = field(default_factory=new_id)

    # ── what the control plane does ──────────────────────────────────────────────────────

    def deploy(self) -> None:
        now = datetime.now(UTC)
        deployment = Deployment(
            name=MODEL, recipe="fake", context_tokens=CONTEXT_TOKENS, wanted=True,
            features=frozenset(Feature),
        )  # fmt: skip
        with self.db.transaction() as tx:
            models.put_deployment(tx, deployment, now=now)
            for sku, nanos in (
                (input_sku(MODEL), INPUT),
                (cache_read_sku(MODEL), CACHED),
                (output_sku(MODEL), OUTPUT),
            ):
                market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=now)
            self._add_replica(tx, now)

    def _add_replica(self, tx: Any, now: datetime) -> None:
        replica = Replica(
            id=self.replica_id,
            deployment=MODEL,
            url=self.replica_url,
            secret=self.fake.key,
            state=ReplicaState.READY,
            detail=None,
            since=now,
        )
        models.add_replica(tx, replica)

    def set_replica(self, state: ReplicaState, detail: str | None = None) -> None:
        with self.db.transaction() as tx:
            models.set_replica_state(
                tx, self.replica_id, state, detail=detail, now=datetime.now(UTC)
            )

    def tenant(self, nanos: int = 10**9) -> tuple[Tenant, str]:
        """Add a tenant with this much in its wallet; return it and a key."""
        now = datetime.now(UTC)
        with self.db.transaction() as tx:
            tenant = tenants.create_tenant(tx, f"tenant {new_id()}", now=now)
            wallet = ledger.open_account(tx, tenant.wallet, prepaid=True)
            ledger.open_account(tx, tenant.revenue, prepaid=False)
            cash = ledger.open_account(tx, "house:cash", prepaid=False)
            if nanos:
                payment = Transfer(
                    id=new_id(),
                    debit_account=cash.id,
                    credit_account=wallet.id,
                    amount=Money(nanos),
                    reason="payment",
                    happened_at=now,
                )
                ledger.post(tx, payment, now=now)
            _, key = tenants.create_key(tx, tenant.id, "test", now=now)
        return tenant, key

    def access_key(self, tenant: Tenant) -> tuple[ApiKey, str]:
        """Add a key with which a tenant signs; return it and its secret."""
        with self.db.transaction() as tx:
            return tenants.create_access_key(
                tx, tenant.id, "signs", vault=Vault(self._vault), now=datetime.now(UTC)
            )

    @property
    def _vault(self) -> Path:
        return self.folder / "access-keys.key"

    # ── what an auditor sees ─────────────────────────────────────────────────────────────

    def wallet(self, tenant: Tenant) -> Account:
        with self.db.transaction() as tx:
            return ledger.get_account(tx, tenant.wallet)

    def paid(self, tenant: Tenant, nanos: int) -> None:
        """This is what the tenant pays, once what it used is handed over."""
        if nanos:
            with contextlib.suppress(AssertionError):
                eventually(lambda: self.wallet(tenant).debits_posted >= nanos)
        else:
            eventually(lambda: not self.wallet(tenant).debits_pending)
        assert self.wallet(tenant).debits_posted == nanos

    def usages(self, tenant: Tenant) -> list[dict[str, Any]]:
        with self.db.transaction() as tx:
            return tx.execute(
                "SELECT * FROM usage WHERE tenant_id = %s ORDER BY recorded_at", [tenant.id]
            ).fetchall()

    def usage(self, tenant: Tenant) -> dict[str, Any]:
        """Return the only usage of this tenant, once it is there."""
        eventually(lambda: bool(self.usages(tenant)))
        (usage,) = self.usages(tenant)
        return usage

    def generated(self) -> int:
        """How many tokens the replica generated for all requests it knows."""
        records = list(self.fake.book._records.values())
        return sum(record.usage.output_tokens for record in records)

    def open_holds(self) -> int:
        with self.db.transaction() as tx:
            row = tx.execute("SELECT count(*) AS n FROM open_hold").fetchone()
        assert row is not None
        return int(row["n"])

    def check_books(self) -> None:
        """Nothing held, and every law of money kept."""
        eventually(lambda: self.open_holds() == 0)
        findings, now = Findings(), datetime.now(UTC)
        with self.db.transaction() as tx:
            ledger_audit.audit(tx, findings, now=now)
            metering_audit.audit(tx, findings, now=now)
        assert findings.differences == []

    # ── clients ──────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        assert self.gateway is not None
        return self.gateway.url

    def client(self, key: str, *, strict: bool = True, retries: int = 0) -> OpenAI:
        client = OpenAI(
            api_key=key,
            base_url=f"{self.url}/v1",
            max_retries=retries,
            timeout=120,
            _strict_response_validation=strict,
        )
        CLIENTS.append(client)
        return client

    def post(self, key: str, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return httpx.post(
            self.url + path,
            json={"model": MODEL} | body,
            headers={"authorization": f"Bearer {key}"},
            timeout=120,
        )

    # ── processes ────────────────────────────────────────────────────────────────────────

    def start(self, *, wait: bool = True, **settings: Any) -> Gateway:
        port = settings.setdefault("http_port", free_port())
        spool = str(self.folder / "spool")
        given = {
            "database_url": self.database_url, "name": "test", "spool": spool, "purse_seconds": 1,
            "vault": str(self._vault), "artefacts": str(self.folder / "artefacts"),
        } | settings  # fmt: skip
        log = self.folder / f"gateway-{port}.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(given)],
                stdout=out,
                stderr=out,
                env=os.environ | {"PYTHONPATH": "src"},
            )
        gateway = Gateway(process, f"http://127.0.0.1:{port}", log)
        if wait:
            try:
                eventually(lambda: _healthy(gateway), seconds=60)
            except BaseException:
                gateway.kill()  # it must not outlive the test
                raise
            self.gateway = gateway
        return gateway


def _healthy(gateway: Gateway) -> bool:
    assert gateway.process.poll() is None, gateway.log.read_text()
    try:
        return httpx.get(f"{gateway.url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def raised(database_url: str, folder: Path) -> Iterator[Stage]:
    """Set everything up but the gateway."""
    fake = FakeReplica()
    with fake.in_thread() as replica_url, Database(database_url) as db:
        stage = Stage(
            db=db, database_url=database_url, folder=folder, fake=fake, replica_url=replica_url
        )
        stage.deploy()
        Vault(folder / "access-keys.key").prepare()
        try:
            yield stage
        finally:
            if stage.gateway is not None and stage.gateway.process.poll() is None:
                stage.gateway.kill()
        for log in folder.glob("gateway-*.log"):
            text = log.read_text()
            assert "Traceback" not in text, text
            assert "gateway.failed" not in text, text


def says(**script: Any) -> list[Any]:
    """Messages that make the replica do as scripted."""
    return [{"role": "user", "content": f"#script:{json.dumps(script, separators=(',', ':'))}"}]
