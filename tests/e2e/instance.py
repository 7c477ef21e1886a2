"""A whole Sublet, started and stopped as a user would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg
from openai import OpenAI
from psycopg.rows import dict_row

from sublet.core.postgres import Postgres

SUBLET = Path(sys.executable).parent / "sublet"
MODEL = "gemma-3-270m"
CLIENTS: list[OpenAI] = []  # closed after each test, with the streams that it broke off


def until(look: Callable[[], Any], *, seconds: float = 180, what: str = "it") -> Any:
    """Poll `look` until it returns something true."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come to pass in {seconds} s"
        time.sleep(0.02)


class Instance:
    """One data folder, and the `sublet up` that runs on it."""

    def __init__(
        self,
        data: Path,
        *,
        slots: int = 4,
        arguments: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.data = data
        self.log_path = log or data.parent / f"{data.name}.up.log"
        self.variables = {"SUBLET_PURSE_SECONDS": "1"} | dict(variables or {})
        self.arguments = ("--slots", str(slots), *arguments)
        self.process: subprocess.Popen[bytes] | None = None
        self.ready: dict[str, Any] = {}

    def start(self, *, seconds: float = 180) -> "Instance":
        self.log = self.log_path.open("ab")
        self.process = subprocess.Popen(
            [SUBLET, "up", *self.options(), *self.arguments],
            env=self.environment(),
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        until(lambda: self._read_ready() or self._dead(), seconds=seconds, what="ready.json")
        assert not self._dead(), self.output()
        return self

    def _read_ready(self) -> bool:
        """A file that one killed before us left behind is not ours."""
        assert self.process is not None
        try:
            found = json.loads((self.data / "ready.json").read_text())
        except FileNotFoundError:
            return False
        if found["pid"] != self.process.pid:
            return False
        self.ready = found
        return True

    def options(self) -> list[str]:
        return [
            "--data", str(self.data), "--api-port", "0", "--gateway-port", "0",
            "--gateway-http-port", "0",
        ]  # fmt: skip

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("SUBLET_") and name != "DATABASE_URL"
        }
        return kept | self.variables | extra

    def stop(self, *, seconds: float = 180) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=seconds)
        self.log.close()
        return code

    def kill(self) -> None:
        """The power button, for the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.log.close()

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop(seconds=30)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        if not self.log.closed:
            self.log.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def output(self) -> str:
        return self.log_path.read_text()

    def _dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def processes(self) -> list[int]:
        """Every process that belongs to this data folder: by its command or its environment."""
        needle = str(self.data).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    if needle in seen:
                        found.append(int(entry.name))
        return found

    def pid_of(self, part: str) -> int:
        """Return the process of 'control', 'gateway' or 'postgres'."""
        assert self.process is not None
        for pid in (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):  # it ended since we listed it
                continue
            if f"sublet.app.{part}".encode() in command or (
                part == "postgres" and b"bin/postgres" in command
            ):
                return int(pid)
        raise AssertionError(f"no {part} process")

    # As a client ────────────────────────────────────────────────────────────────────────

    def api(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        named: str | None = None,
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.ready['operator_key']}"}
        if named is not None:
            headers["Idempotency-Key"] = named
        return httpx.request(
            method,
            self.ready["api_url"] + path,
            json=body,
            headers=headers,
            timeout=120,
        )

    def tenant(self, name: str, *, usd: str | None = "1") -> tuple[str, str]:
        """Make a tenant with money; return its id and key."""
        made = self.api("POST", "/v1/tenants", {"name": name})
        assert made.status_code == 201, made.text
        tenant_id = made.json()["id"]
        if usd is not None:
            credit = self.api("POST", f"/v1/tenants/{tenant_id}/credits", {"amount_usd": usd})
            assert credit.status_code == 200, credit.text
        key = self.api("POST", f"/v1/tenants/{tenant_id}/keys", {"name": "test"}).json()["key"]
        return tenant_id, key

    def openai(self, key: str | None = None, *, strict: bool = True, **options: Any) -> OpenAI:
        client = OpenAI(
            base_url=self.ready["gateway_http_url"] + "/v1",
            api_key=key or self.ready["tenant_key"],
            _strict_response_validation=strict,
            timeout=180,
            **options,
        )
        CLIENTS.append(client)
        return client

    def cli(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SUBLET, *arguments],
            env=self.environment(SUBLET_DATA=str(self.data)),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def wallet(self, key: str) -> dict[str, Any]:
        return self.api("GET", "/v1/wallet", key=key).json()

    def settled(self, key: str) -> dict[str, Any]:
        """Return the wallet once nothing is held: all that was used is handed over by then."""

        def look() -> dict[str, Any] | None:
            wallet = self.wallet(key)
            return None if Decimal(wallet["held_usd"]) else wallet

        return until(look, what="the last hold's end")

    def charges(self, key: str) -> list[dict[str, Any]]:
        return self.api("GET", "/v1/charges?limit=1000", key=key).json()["items"]

    def lease(self, key: str | None = None, **body: Any) -> dict[str, Any]:
        made = self.api("POST", "/v1/leases", body, key=key or self.ready["tenant_key"])
        assert made.status_code == 201, made.text
        return made.json()

    def show_lease(self, lease_id: str) -> dict[str, Any]:
        return self.api("GET", f"/v1/leases/{lease_id}").json()

    def await_lease(self, lease_id: str, state: str, *, seconds: float = 180) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            shown = self.show_lease(lease_id)
            return shown if shown.get("state") == state else None

        return until(reached, seconds=seconds, what=f"lease {state}")

    def await_model(self, *, seconds: float = 240) -> None:
        def ready() -> bool:
            # The gateway hears of it a quarter of a second after the control plane's API says it.
            answer = httpx.get(
                f"{self.ready['gateway_http_url']}/v1/models",
                headers={"Authorization": f"Bearer {self.ready['tenant_key']}"},
                timeout=120,
            )
            sold = answer.json()["data"] if answer.status_code == 200 else []
            return any(model["sublet"]["state"] == "ready" for model in sold)

        until(ready, seconds=seconds, what="the model")

    def verify(self) -> None:
        """The auditor finds nothing, once what is on its way has arrived."""
        run = self.cli("verify", "--json")
        document = json.loads(run.stdout or "{}")
        assert run.returncode == 0, (run.stdout, run.stderr)
        assert document["differences"] == []
        assert document["laws"]["money"]["transfers"] > 0

    @contextlib.contextmanager
    def database(self) -> Iterator[psycopg.Connection[dict[str, Any]]]:
        with psycopg.connect(
            Postgres(self.data / "postgres").url, row_factory=dict_row
        ) as connection:
            yield connection


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
