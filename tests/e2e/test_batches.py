"""A batch on the real model: reclaimed, its gateway killed, its engine killed, and each line once."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import pytest
from tests.e2e.instance import MODEL, Instance, until

pytestmark = pytest.mark.e2e

LINES = 20


def ask(number: int) -> Any:
    question = f"What is {number} plus {number + 1}?"
    return {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": question}]}


def sell(instance: Instance) -> None:
    for kind, usd in (("input", "0.05"), ("output", "0.20")):
        price = {"usd": usd, "per": "million_tokens"}
        put = instance.api("PUT", f"/v1/prices/model:{MODEL}:batch:{kind}", price)
        assert put.status_code == 200, put.text


def state_of_model(instance: Instance) -> str:
    items = instance.api("GET", "/v1/deployments").json()["items"]
    (found,) = (item for item in items if item["name"] == MODEL)
    return str(found["state"])


def reclaim(instance: Instance) -> None:
    """An internal job takes every slot for a moment."""
    job = instance.api("POST", "/v1/internal-jobs", {"gpus": 2, "command": ["sleep", "1"]})
    assert job.status_code < 300, job.text
    until(lambda: state_of_model(instance) != "ready", what="the reclaim")


def kill_engine(instance: Instance) -> None:
    """The model's server dies, as when memory runs out."""
    for pid in instance.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"sublet.models.replica.engine" in command:
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError("no engine runs")


def test_a_batch_outlives_whatever_dies(launch: Callable[..., Instance]) -> None:
    instance = launch(slots=2, arguments=("--notice", "1")).start()
    instance.await_model()
    sell(instance)
    _, key = instance.tenant("batches")
    client = instance.openai(key, max_retries=10)
    lines = [
        {"custom_id": f"q{n}", "method": "POST", "url": "/v1/chat/completions", "body": ask(n)}
        for n in range(LINES)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("q.jsonl", text), purpose="batch")
    batch_id = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id

    def done(number: int) -> bool:
        counts = client.batches.retrieve(batch_id).request_counts
        return counts is not None and counts.completed >= number

    until(lambda: done(3), seconds=60, what="the first lines")
    os.kill(instance.pid_of("gateway"), signal.SIGKILL)
    until(lambda: done(7), seconds=90, what="lines of the next gateway")
    reclaim(instance)
    until(lambda: done(11), seconds=90, what="lines of the next replica")
    kill_engine(instance)
    until(
        lambda: client.batches.retrieve(batch_id).status == "completed",
        seconds=180,
        what="the batch's end",
    )
    batch = client.batches.retrieve(batch_id)
    assert batch.error_file_id is None and batch.output_file_id is not None
    written = client.files.content(batch.output_file_id).text
    answers = [json.loads(line) for line in written.splitlines()]
    assert [one["custom_id"] for one in answers] == [f"q{n}" for n in range(LINES)]

    instance.settled(key)
    charges = instance.charges(key)
    asked = [one["response"]["request_id"] for one in answers]
    outputs = [one for one in charges if one["sku"] == f"model:{MODEL}:batch:output"]
    assert sorted(one["request_id"] for one in outputs) == sorted(asked)
    assert {one["request_id"] for one in charges} == set(asked)
    assert sum(one["quantity"] for one in outputs) == sum(
        one["response"]["body"]["usage"]["completion_tokens"] for one in answers
    )

    with anthropic.Anthropic(
        api_key=key, base_url=instance.ready["gateway_http_url"], max_retries=5
    ) as theirs:
        made = theirs.messages.batches.create(
            requests=[{"custom_id": f"q{n}", "params": ask(n)} for n in range(3)]
        )
        until(
            lambda: theirs.messages.batches.retrieve(made.id).processing_status == "ended",
            seconds=90,
            what="the message batch's end",
        )
        read = list(theirs.messages.batches.results(made.id))
    assert [one.result.type for one in read] == ["succeeded"] * 3
    instance.settled(key)
    instance.verify()
