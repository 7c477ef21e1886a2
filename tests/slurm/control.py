"""`sublet control --engine slurm` as an operator starts it, and a client of its API."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from tests.slurm.cluster import Cluster, script, until

SUBLET = Path(sys.executable).parent / "sublet"


class Control:
    """One control plane on a cluster and a database."""

    def __init__(self, cluster: Cluster, folder: Path, database_url: str, **settings: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.data = folder / "data"
        self.shared = folder / "shared"
        self.database_url = database_url
        (self.port,) = script.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.failpoints: Path | None = None
        self.images: Path | None = None
        self.model = False  # whether it hosts the demo model
        self.notice_seconds = cluster.inner.notice_seconds
        self.settings = folder / "slurm.toml"
        lines = {"shared": str(self.shared), "conf": cluster.conf, **settings}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        self.settings.write_text(text, encoding="utf-8")

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SUBLET_")}
        if self.failpoints is not None:
            kept["SUBLET_FAILPOINTS"] = str(self.failpoints)
        if self.images is not None:
            kept["SUBLET_IMAGES"] = str(self.images)
        return kept | {
            "DATABASE_URL": self.database_url,
            "SUBLET_DATA": str(self.data),
            "SUBLET_API_PORT": str(self.port),
            "SUBLET_MODEL": "1" if self.model else "0",
            "SUBLET_NOTICE_SECONDS": str(self.notice_seconds),
        }

    def start(self) -> "Control":
        self.start_again()
        until(lambda: self.dead() or self._ready(), seconds=240, what="the control plane")
        assert not self.dead(), self.log()
        return self

    def start_again(self) -> None:
        """Start it, and do not wait for anything."""
        with (self.folder / "control.log").open("ab") as log:
            self.process = subprocess.Popen(
                [SUBLET, "control", "--engine", "slurm", "--slurm", str(self.settings)],
                env=self.environment(),
                stdout=log,
                stderr=log,
            )

    def dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError, FileNotFoundError, KeyError):
            return bool(self.api("GET", "/v1/fleet")["pools"])
        return False

    def log(self) -> str:
        return (self.folder / "control.log").read_text(encoding="utf-8")

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, sign: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(sign)
            self.process.wait(timeout=120)
            self.process = None

    @property
    def keys(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.data / "secrets.json").read_text())
        return found

    def api(
        self, method: str, path: str, body: object = None, *, tenant: bool = False
    ) -> dict[str, Any]:
        key = self.keys["tenant_key" if tenant else "operator_key"]
        answer = httpx.request(
            method, self.url + path, json=body, timeout=180,
            headers={"Authorization": f"Bearer {key}"},
        )  # fmt: skip
        document: dict[str, Any] = answer.json()
        return document

    def lease(self, *command: str, gpus: int = 1, **more: Any) -> str:
        body = {"command": list(command), "gpus": gpus, "max_seconds": 3600} | more
        made = self.api("POST", "/v1/leases", body, tenant=True)
        assert "id" in made, made
        return str(made["id"])

    def show(self, lease: str) -> dict[str, Any]:
        return self.api("GET", f"/v1/leases/{lease}")

    def reach(self, lease: str, state: str, *, seconds: float = 120) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            shown = self.show(lease)
            return shown if shown.get("state") == state else None

        found: dict[str, Any] = until(there, seconds=seconds, what=f"{lease} {state}")
        return found

    def logs(self, lease: str) -> str:
        key = self.keys["tenant_key"]
        return httpx.get(
            f"{self.url}/v1/leases/{lease}/logs", headers={"Authorization": f"Bearer {key}"}
        ).text

    def verify(self) -> dict[str, Any]:
        """The auditor finds nothing."""
        document = self.api("GET", "/v1/audit")
        assert document["differences"] == [], document["differences"]
        return document


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)
