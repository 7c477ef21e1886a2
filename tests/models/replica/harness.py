"""Real replicas, as processes of their own, and what tests ask them."""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import httpx

MODEL = "gemma-3-270m"
COUNTS = ("input_tokens", "cache_read_tokens", "output_tokens")
KEY = "a-secret-of-the-test"

T = TypeVar("T")


def until(look: Callable[[], T], *, seconds: float = 180, what: str = "it") -> T:
    """Return what `look` sees as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.003)
    return seen


@dataclass(frozen=True)
class Running:
    """A replica's process, and what tests ask it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    client: httpx.Client

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line[:1] == "{"]

    def health(self) -> tuple[int, dict[str, Any]]:
        answer = self.client.get("/health")
        return answer.status_code, answer.json()

    def slots(self) -> list[dict[str, Any]]:
        slots: list[dict[str, Any]] = self.client.get("/slots").json()
        return slots

    def busy(self) -> int:
        return sum(slot["is_processing"] for slot in self.slots())

    def counters(self) -> dict[str, int]:
        """Return llama.cpp's own totals, in our words."""
        ours = {
            "llamacpp:prompt_tokens_total": "input_tokens",
            "llamacpp:prompt_tokens_cached_total": "cache_read_tokens",
            "llamacpp:tokens_predicted_total": "output_tokens",
        }
        pairs = (line.split() for line in self.client.get("/metrics").text.splitlines())
        return {ours[pair[0]]: int(float(pair[1])) for pair in pairs if pair and pair[0] in ours}

    def progress(self, request_id: str) -> dict[str, Any]:
        """Return the count so far; zeros before the request has arrived."""
        answer = self.client.get(f"/usage/{request_id}")
        return answer.json() if answer.status_code == 200 else dict.fromkeys(COUNTS, 0)

    def has_read(self, request_id: str, *, more_than: int) -> bool:
        return int(self.progress(request_id)["input_tokens"]) > more_than

    def usage(self, request_id: str, *, wait_ms: int = 5000) -> dict[str, Any]:
        answer = self.client.get(f"/usage/{request_id}", params={"wait_ms": wait_ms})
        assert answer.status_code == 200, answer.text
        usage: dict[str, Any] = answer.json()
        return usage

    def count(self, body: dict[str, Any]) -> int:
        answer = self.client.post("/count", json=body)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["input_tokens"])

    def send(
        self, path: str, body: dict[str, Any], *, request_id: str
    ) -> http.client.HTTPConnection:
        """Send a request and read nothing: to hang up is then to close the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        headers = {"authorization": f"Bearer {KEY}", "x-request-id": request_id}
        connection.request("POST", path, json.dumps(body), headers)
        return connection


def chunks_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the chunks of an event stream, without its end mark."""
    for line in answer.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


@contextmanager
def replica(
    log: Path,
    *,
    weights: Path,
    notice: Path | None = None,
    recipe: str | None = None,
    more: Sequence[str] = (),
) -> Iterator[Running]:
    """Start a replica; yield it as soon as its socket is up, which is before the model is.

    Args:
        log: what it says goes there.
        weights: the folder of assembled ones.
        notice: the file that says until when it may drain.
        recipe: as JSON; None: the demo's.
        more: arguments.
    """
    environment = {**os.environ, "SUBLET_REPLICA_KEY": KEY}
    named = ["--recipe", MODEL]
    if recipe is not None:
        environment["SUBLET_REPLICA_RECIPE"], named = recipe, []
    if notice is not None:
        environment["SUBLET_NOTICE_FILE"] = str(notice)
    with log.open("w") as stderr:
        process = _start(stderr, weights, environment, [*named, *more])
    try:

        def port() -> int | None:
            assert process.poll() is None, log.read_text()
            lines = [line for line in log.read_text().splitlines() if "replica.listening" in line]
            return int(json.loads(lines[0])["port"]) if lines else None

        number = until(port, what="listening")
        assert number is not None
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{number}", headers=headers, timeout=120, trust_env=False
        ) as client:
            yield Running(process, number, log, client)
    finally:
        process.kill()
        process.wait(60)


def _start(
    stderr: TextIO, weights: Path, environment: dict[str, str], more: Sequence[str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sublet.models.replica", *more, "--port", "0"]
    # One thread: two would wait for each other's turn on a machine that has other work.
    command += ["--weights", str(weights), "--threads", "1"]
    return subprocess.Popen(command, stderr=stderr, env=environment)
