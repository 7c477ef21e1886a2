"""`sublet up`: everything on one machine, under one process that stops it all again."""

import contextlib
import fcntl
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final
from urllib.parse import urlsplit

from sublet.app.bootstrap import DEMO, DEMO_MODEL
from sublet.app.greeting import greeting
from sublet.app.secrets import Secrets, load_or_make
from sublet.app.signals import DRAIN
from sublet.config import Config
from sublet.core.certificates import ensure
from sublet.core.clock import SystemClock
from sublet.core.errors import Misconfigured, SubletError, Unavailable
from sublet.core.files import write_whole
from sublet.core.net import free_port, listen
from sublet.core.postgres import Postgres, check_durability
from sublet.core.process import die_with_parent, stop

# The layout of the data folder. A folder of a newer layout is refused, an older one moved on.
FORMAT: Final = 1
_MODEL_WAIT_SECONDS: Final = 120.0
_START_WAIT_SECONDS: Final = 30.0
_STOP_MARGIN_SECONDS: Final = 20.0
_BREATH_SECONDS: Final = 5.0


def up(config: Config) -> int:
    """Run a whole Sublet in the foreground until Ctrl-C; return the exit code."""
    try:
        with _locked(config.data):
            return Supervisor(config).run()
    except SubletError as error:
        print(f"sublet: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 2 if isinstance(error, Misconfigured) else 1


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float


class Supervisor:
    """Starts the parts in order, restarts what dies, and stops them in the other order."""

    def __init__(self, config: Config) -> None:
        self._config = _with_ports(config)
        self._data = config.data
        self._postgres: Postgres | None = None
        self._children: dict[str, _Child] = {}
        self._stopping = False
        self._not_before = 0.0  # when PostgreSQL is to be started again
        self._ready = self._data / "ready.json"
        self._logs = self._data / "logs"

    def run(self) -> int:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, self._asked_to_stop)
        self._ready.unlink(missing_ok=True)
        self._logs.mkdir(exist_ok=True)
        secrets = load_or_make(self._data / "secrets.json")
        ensure(self._data / "ca", hosts=[self._config.host], now=SystemClock().now())
        try:
            self._start_all()
            self._wait_until_serving()
            note = self._wait_for_model(secrets)
            if not self._stopping:
                self._announce(secrets, note)
            while not self._stopping:
                self._revive()
                time.sleep(0.1)
        finally:
            self._stop_all()
        return 0

    def _asked_to_stop(self, _: int, __: FrameType | None) -> None:
        if self._stopping:  # asked twice: no more waiting for anybody's notice
            for child in self._children.values():
                child.process.kill()
        self._stopping = True

    def _start_all(self) -> None:
        if self._config.database_url is None:
            self._postgres = Postgres(self._data / "postgres")
            self._postgres.prepare()
            self._config = replace(self._config, database_url=self._postgres.url)
        else:
            check_durability(self._config.database_url)
        _say("starting PostgreSQL, the control plane and the gateway …")
        # All at once: each waits for what it needs, and loading their code takes longest.
        self._spawn("control")
        self._spawn("gateway")
        if self._postgres is not None:
            self._postgres.start()

    def _spawn(self, name: str) -> None:
        log = (self._logs / f"{name}.log").open("ab")
        environment = {
            variable: value
            for variable, value in os.environ.items()
            if not variable.startswith("SUBLET_")
        }
        process = subprocess.Popen(
            [sys.executable, "-m", f"sublet.app.{name}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment | self._config.to_environment(),
            start_new_session=True,  # Ctrl-C is for us: we say in which order to stop
            # What is lost with us is found again at the next start; nothing must half live on.
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 -- no threads here
        )
        self._children[name] = _Child(name=name, process=process, log=log, started=time.monotonic())

    def _wait_until_serving(self) -> None:
        urls = {
            "control": f"{self._config.api_url}/v1/status",
            "gateway": f"{self._config.gateway_http_url}/healthz",
        }
        until = time.monotonic() + _START_WAIT_SECONDS
        for name, url in urls.items():
            while not self._stopping and _get(url) is None:
                code = self._children[name].process.poll()
                why = f"its log {self._logs / name}.log ends: {self._last_line(name)}"
                if code == 2:
                    raise Misconfigured(self._last_line(name).removeprefix("sublet: "))
                if code is not None:
                    raise Unavailable(f"the {name} process ended with {code}; {why}")
                if time.monotonic() > until:
                    raise Unavailable(f"the {name} process does not answer; {why}")
                time.sleep(0.02)

    def _last_line(self, name: str) -> str:
        text = (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "(empty)"

    def _wait_for_model(self, secrets: Secrets) -> str | None:
        """Wait while the model loads, saying so; return why it is not there, or None."""
        if not self._config.model:
            return None
        url = f"{self._config.api_url}/v1/deployments"
        until = time.monotonic() + _MODEL_WAIT_SECONDS
        settled = time.monotonic() + 3.0  # it may be absent for as long, until the loop starts it
        told = ""
        detail: str | None = None
        while not self._stopping and time.monotonic() < until:
            self._revive()
            document = _get(url, key=secrets.operator_key)
            items = [] if document is None else document["items"]
            found = next((item for item in items if item["name"] == DEMO_MODEL), None)
            if found is not None:
                detail = found["detail"]
                if found["state"] == "ready":
                    return None
                if found["state"] == "absent" and time.monotonic() > settled:
                    return f"the model {DEMO_MODEL} is not served: {detail}"
                if detail and detail != told and found["state"] == "starting":
                    _say(f"waiting for the model {DEMO_MODEL}: {detail} …")
                    told = detail
            time.sleep(0.05)
        return None if self._stopping else f"the model {DEMO_MODEL} is not ready yet: {detail}"

    def _announce(self, secrets: Secrets, note: str | None) -> None:
        config = self._config
        document: dict[str, Any] = {
            "api_url": config.api_url,
            "console_url": f"{config.public_url}/console",
            "gateway_url": config.gateway_url,
            "gateway_http_url": config.gateway_http_url,
            "ca_file": str(self._data / "ca" / "ca.pem"),
            "operator_key": secrets.operator_key,
            "tenant": DEMO,
            "tenant_key": secrets.tenant_key,
            "pid": os.getpid(),
            "unsafe_no_sandbox": config.unsafe_no_sandbox,
        }
        _say(greeting(config, document, invitation=self._invitation(secrets), note=note))
        write_whole(self._ready, f"{json.dumps(document, indent=2)}\n".encode())

    def _invitation(self, secrets: Secrets) -> str | None:
        """Return a link that makes the console's first account; None once there is one."""
        url, key = self._config.api_url, secrets.operator_key
        people = _get(f"{url}/v1/people", key=key)
        if people is None or people["items"]:
            return None
        made = _get(f"{url}/v1/invitations", key=key, send={"role": "owner"})
        return None if made is None else str(made["url"])

    def _revive(self) -> None:
        self._revive_postgres()
        for name, child in list(self._children.items()):
            code = child.process.poll()
            # One that dies at once is not started again and again without a breath.
            if code is None or time.monotonic() < child.started + 1.0:
                continue
            _say(f"the {name} process ended ({code}); starting it again …")
            try:
                self._spawn(name)
            except OSError as error:  # such as a disk that turned read-only
                _say(
                    f"{name} did not start: {error}; trying again in {_BREATH_SECONDS:.0f} seconds"
                )
                child.started = time.monotonic() + _BREATH_SECONDS
            else:
                child.log.close()

    def _revive_postgres(self) -> None:
        if self._postgres is None or self._postgres.runs or time.monotonic() < self._not_before:
            return
        _say("PostgreSQL ended; starting it again …")
        try:
            self._postgres.start()
        except (Misconfigured, Unavailable) as error:
            # Such as a full disk: what runs runs on, and the rest waits for it.
            _say(f"{error}; trying again in {_BREATH_SECONDS:.0f} seconds")
            self._not_before = time.monotonic() + _BREATH_SECONDS

    def _stop_all(self) -> None:
        with contextlib.suppress(OSError):  # of a disk that is read-only by now
            self._ready.unlink(missing_ok=True)
        if self._children:
            _say("stopping: leases are told to go …")
        for name in ("control", "gateway"):
            if (child := self._children.get(name)) is not None:
                wait = 86_400.0 if name == "control" else _STOP_MARGIN_SECONDS
                sign = DRAIN if name == "control" else signal.SIGTERM
                stop(child.process, sign=sign, wait_seconds=wait)
                child.log.close()
        self._children.clear()
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """Keep the data folder to ourselves; check that it is ours to use.

    Raises:
        Misconfigured: not writable, of a newer Sublet, or used by one that runs.
    """
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data / "lock").open("a+")
    except OSError as error:
        raise Misconfigured(
            f"cannot write to the data folder {data}: {error.strerror};"
            " choose another with --data DIR"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise Misconfigured(
                f"a Sublet already runs on {data} (pid {pid}): stop it, or choose another --data DIR"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        version = data / "version"
        found = version.read_text(encoding="ascii").strip() if version.exists() else str(FORMAT)
        if not found.isdigit() or int(found) > FORMAT:
            raise Misconfigured(
                f"the data folder {data} has layout {found[:20]}, this Sublet knows up to {FORMAT}:"
                " it was used by a newer Sublet; install that version or newer"
            )
        if found != str(FORMAT) or not version.exists():
            write_whole(version, f"{FORMAT}\n".encode(), mode=0o644)
        yield


def _with_ports(config: Config) -> Config:
    """Check that the ports are free; take free ones for those that are 0.

    Raises:
        Misconfigured: one is taken.
    """
    wanted = {
        "api_port": (config.host, config.api_port),
        "gateway_port": (config.host, config.gateway_port),
        "gateway_http_port": ("127.0.0.1", config.gateway_http_port),
    }
    chosen: dict[str, Any] = {}
    with contextlib.ExitStack() as held:  # all at once, so that no two get the same
        for name, (host, port) in wanted.items():
            made = held.enter_context(listen(host, port or free_port(host)))
            chosen[name] = made.getsockname()[1]
    return replace(config, **chosen)


def _get(
    url: str, *, key: str | None = None, send: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return the JSON at `url`, or what it answers to `send`; None when nobody answers with it."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=2)
    try:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        if send is None:
            connection.request("GET", address.path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request("POST", address.path, json.dumps(send), headers)
        answer = connection.getresponse()
        body = answer.read()
        document: dict[str, Any] = json.loads(body)
        return document if answer.status in {http.client.OK, http.client.CREATED} else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # into a file on a full disk, or to nobody
        print(line, flush=True)  # noqa: T201 -- `sublet up` speaks to the person who started it
