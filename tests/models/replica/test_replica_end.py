"""How a replica ends: drained, reclaimed, or with its engine gone; no count is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.models.replica.harness import Running, chunks_of, replica, until

STORY = {
    "prompt": "Once upon a time",
    "max_tokens": 3000,
    "stream": True,
    "logit_bias": {"1": -100},
}


@pytest.fixture
def notice(tmp_path: Path) -> Path:
    return tmp_path / "notice.json"


@pytest.fixture
def running(weights: Path, notice: Path, tmp_path: Path) -> Iterator[Running]:
    with replica(tmp_path / "log", weights=weights, notice=notice) as started:
        until(lambda: started.health()[0] == 200, seconds=60, what="loading the model")
        yield started


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("only Linux lists the children of a process")
    return [int(child) for child in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_reclaimed_replica_ends_its_streams_in_band_with_exact_counts(
    running: Running, notice: Path
) -> None:
    before = running.counters()
    with running.client.stream(
        "POST", "/v1/completions", json=STORY, headers={"x-request-id": "cut"}
    ) as answer:
        chunks = chunks_of(answer)
        next(chunks)
        stops_at = datetime.now(UTC) + timedelta(seconds=2.5)
        notice.write_text(json.dumps({"stops_at": stops_at.isoformat()}))
        running.process.send_signal(signal.SIGTERM)
        until(lambda: running.health()[0] == 503, what="draining")
        assert running.health()[1]["status"] == "draining"
        refused = running.client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"

        counters: dict[str, int] = {}

        def keep_looking() -> None:
            """Keep the engine's last totals: soon after the cut, nobody can be asked."""
            with httpx.Client(
                base_url=running.client.base_url, headers=running.client.headers
            ) as c:
                looking = Running(running.process, running.port, running.log, c)
                while running.process.poll() is None:
                    try:
                        counters.update(looking.counters())
                    except httpx.HTTPError:
                        return

        looker = threading.Thread(target=keep_looking)
        looker.start()
        *_, last = chunks
        looker.join()
    assert running.process.wait(5) == 0
    assert datetime.now(UTC) < stops_at + timedelta(seconds=1)

    assert last["error"]["type"] == last["error"]["code"] == "model_reclaimed"
    finished = [e for e in running.events() if e["event"] == "replica.finished"]
    assert finished[-1]["stopped"] == "reclaimed"
    told = last["sublet"]
    assert told["output_tokens"] > 0
    if counters["output_tokens"] > before["output_tokens"]:  # the looker saw the very end
        assert told == {name: counters[name] - before[name] for name in told}
    assert told == {name: finished[-1][name] for name in told}


def test_a_drained_replica_lets_a_stream_finish_and_leaves(running: Running) -> None:
    body = {"prompt": "One, two,", "max_tokens": 30, "stream": True}
    with running.client.stream("POST", "/v1/completions", json=body) as answer:
        chunks = chunks_of(answer)
        next(chunks)
        running.process.send_signal(signal.SIGTERM)  # and no notice: it takes eight seconds
        *_, last = chunks
    assert last["usage"]["completion_tokens"] == 30
    left = time.monotonic()
    assert running.process.wait(5) == 0
    assert time.monotonic() - left < 2


def test_a_crashed_engine_is_told_in_band_and_the_process_fails(running: Running) -> None:
    (engine,) = children(running.process.pid)
    with running.client.stream("POST", "/v1/completions", json=STORY) as answer:
        chunks = chunks_of(answer)
        seen = [next(chunks) for _ in range(5)]
        os.kill(engine, signal.SIGKILL)
        *_, last = chunks
    assert last["error"]["type"] == "engine_failed"
    assert last["sublet"]["output_tokens"] >= seen[-1]["sublet"]["output_tokens"]
    assert running.process.wait(5) == 1


def test_an_engine_does_not_outlive_its_agent(weights: Path, tmp_path: Path) -> None:
    with replica(tmp_path / "log", weights=weights) as started:
        engine = until(lambda: children(started.process.pid), what="starting the engine")[0]
        started.process.kill()
        started.process.wait(5)
        until(lambda: not alive(engine), what="ending the engine")


def test_it_refuses_to_start_without_a_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sublet.models.replica", "--port", "0", "--recipe"]
    for recipe in ("gemma-3-270m", "no-such-model"):
        done = subprocess.run(
            [*command, recipe], env={}, cwd=tmp_path, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 2
        said: dict[str, Any] = json.loads(done.stderr)
        assert said["event"] == "replica.misconfigured"
