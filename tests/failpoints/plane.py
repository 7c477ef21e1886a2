"""A process that dies again and again, and whoever starts it again and looks at the books."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx

from sublet.app.audit import audit
from sublet.app.secrets import load_or_make
from sublet.core.clock import ManualClock, SystemClock
from sublet.core.db import Database
from sublet.core.ids import new_id
from sublet.core.net import free_port

SECONDS: Final = 90.0  # in which it dies a dozen times, on a machine that others use
SLOTS: Final = 4


class Zygote:
    """Forks the processes under test. See `zygote.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": "src"},
        )
        self._started: list[int] = []

    def start(self, part: str, *, environment: dict[str, str], log: Path) -> int:
        order = {"part": part, "environment": environment, "log": str(log)}
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        pid = int(self._process.stdout.readline())
        self._started.append(pid)
        return pid

    def close(self) -> None:
        for pid in filter(runs, self._started):
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(120)
        self._process.stdout.close()


def runs(pid: int) -> bool:
    """Say whether a process is there; the zygote leaves no zombies."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(slots=True)
class Plane:
    """One data folder and database, and a control plane or gateway on them, started when it dies."""

    zygote: Zygote
    db: Database
    database_url: str
    folder: Path
    part: str = "control"
    variables: Mapping[str, str] = field(default_factory=dict)
    points: Path = field(init=False)
    deaths: list[str] = field(default_factory=list)  # what had been fired when it died
    others: dict[int, str] = field(default_factory=dict)
    pid: int = 0
    _client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=120))
    url: str = ""
    _operator: str = ""
    _looked_at: int = 0
    _environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.points = self.folder / "failpoints"
        for name in ("reached", "fired"):
            (self.points / name).mkdir(parents=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._operator = load_or_make(self.folder / "secrets.json").operator_key
        self._environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": self.database_url,
            "SUBLET_DATA": str(self.folder),
            "SUBLET_API_PORT": str(port) if self.part == "control" else "0",
            "SUBLET_GATEWAY_HTTP_PORT": str(port) if self.part == "gateway" else "0",
            "SUBLET_GATEWAY_PORT": str(free_port()),
            "SUBLET_PURSE_SECONDS": "1",
            "SUBLET_SLOTS": str(SLOTS),
            "SUBLET_MODEL": "0",
            "SUBLET_NOTICE_SECONDS": "20",
            "SUBLET_FAILPOINTS": str(self.points),
            "TEST_CLOCK": str(self.folder / "clock"),
            **self.variables,
        }
        self.set_clock()

    def set_clock(self, **off: float) -> None:
        """Put its machine's clock forward or back from what is right."""
        unfinished = self.folder / "clock.new"
        unfinished.write_text(str(timedelta(**off).total_seconds()))
        unfinished.rename(self.folder / "clock")

    # ---- what it comes past

    def plan(self, *lines: str) -> None:
        (self.points / "plan").write_text("\n".join(lines))

    def reached(self) -> set[str]:
        return {mark.name for mark in (self.points / "reached").iterdir()}

    def fired(self) -> set[str]:
        return {mark.name for mark in (self.points / "fired").iterdir()}

    # ---- its life

    def start(self) -> None:
        self.pid = self.zygote.start(
            self.part, environment=self._environment, log=self.folder / "log"
        )

    def start_another(self, **variables: str) -> int:
        """Start a second control plane on the same, at an address of its own; return its pid."""
        port = str(free_port())
        more = {"SUBLET_API_PORT": port, "SUBLET_FAILPOINTS": ""} | variables
        pid = self.zygote.start(
            "control", environment=self._environment | more, log=self.folder / "log"
        )
        self.others[pid] = f"http://127.0.0.1:{more['SUBLET_API_PORT']}"
        return pid

    def follow(self, pid: int) -> None:
        """Look at another one from now on."""
        self.pid, self.url = pid, self.others[pid]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Return what all of them logged by this name."""
        events = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [found for found in events if found["event"] == event]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def tend(self) -> None:
        """Start it again if it died; look at the books after whatever happened to it."""
        fired = self.fired()
        if runs(self.pid) and len(fired) == self._looked_at:
            return
        if not runs(self.pid):
            self.deaths.append(", ".join(sorted(fired))[-80:])
            assert len(self.deaths) < 300, self.log()[-3000:]
            self.start()
            self._until_answers()
        self._looked_at = len(fired)
        self.check()

    def _until_answers(self) -> None:
        """Wait until it serves, or is dead again."""
        until = time.monotonic() + SECONDS
        url = self.url + {"control": "/v1/status", "gateway": "/healthz"}[self.part]
        while runs(self.pid):
            with contextlib.suppress(httpx.TransportError):
                if self._client.get(url).status_code == 200:
                    return
            assert time.monotonic() < until, self.log()[-3000:]
            time.sleep(0.01)

    def check(self, *, later: timedelta = timedelta(0)) -> None:
        """The auditor finds no difference; `later` lets it look at what ended just now, too."""
        clock = ManualClock(SystemClock().now() + later)
        differences = audit(self.db, clock=clock).differences
        assert not differences, (differences, self.fired())

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, what: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
        end = time.monotonic() + seconds
        while True:
            self.tend()
            if found := what():
                return found
            assert time.monotonic() < end, self.log()[-3000:]
            time.sleep(0.02)

    # ---- a client that does not give up

    def call(
        self, method: str, path: str, body: object = None, *, key: str | None = None
    ) -> dict[str, Any]:
        """Ask until there is an answer, under one name, so that it takes effect once."""
        name = str(new_id())
        headers = {"Authorization": f"Bearer {key or self._operator}"}
        if method == "POST":
            headers["Idempotency-Key"] = name
        end = time.monotonic() + SECONDS
        while True:
            self.tend()
            with contextlib.suppress(httpx.TransportError):
                answer = self._client.request(method, self.url + path, json=body, headers=headers)
                if answer.is_success:
                    return dict(answer.json()) if answer.content else {}
                error = answer.json()["error"]
                if error["code"] == "refused" and "was shown then" in error["message"]:
                    headers["Idempotency-Key"] = str(new_id())  # a lost key: make another
                else:
                    assert error["retryable"], answer.text
            assert time.monotonic() < end, self.log()[-3000:]
            time.sleep(0.02)

    def stop(self) -> None:
        for pid in {self.pid, *self.others} - {0}:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
        self._client.close()


@contextmanager
def plane(
    zygote: Zygote,
    database_url: str,
    folder: Path,
    *,
    part: str = "control",
    plan: str = "",
    variables: Mapping[str, str] | None = None,
) -> Iterator[Plane]:
    """Run one from its first start on with this `plan`."""
    with Database(database_url) as db:
        made = Plane(zygote, db, database_url, folder, part, variables or {})
        made.plan(plan)
        try:
            made.start()
            yield made
        finally:
            made.stop()
            _end_workloads(folder)
            print(made.log())  # shown when the test fails


def _end_workloads(folder: Path) -> None:
    """Kill what the engine left running, which is what its fences are for."""
    needle = str(folder).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
