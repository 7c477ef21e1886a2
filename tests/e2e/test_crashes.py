"""kill -9 of every part at a bad moment; then everything adds up, and nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx
import openai
import pytest
from tests.e2e.instance import MODEL, Instance, until

pytestmark = pytest.mark.e2e
STORY = [{"role": "user", "content": "Count from 1 to 900"}]


def open_holds(instance: Instance, prefix: str) -> int:
    with instance.database() as connection:
        row = connection.execute(
            "SELECT count(*) AS n FROM open_hold WHERE holder LIKE %s", [prefix + "%"]
        ).fetchone()
    assert row is not None
    return int(row["n"])


def killed_and_back(instance: Instance, part: str) -> None:
    """Kill -9 a part and wait until the supervisor has another."""
    pid = instance.pid_of(part)
    os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        try:
            return instance.pid_of(part) != pid
        except AssertionError:
            return False

    until(back, what=f"a new {part}")


def api_answers(instance: Instance) -> bool:
    try:
        return bool(instance.api("GET", "/v1/me").status_code == 200)
    except httpx.HTTPError:
        return False


def test_gateway_killed_in_mid_stream(instance: Instance) -> None:
    _, key = instance.tenant("gateway killed")
    stream = instance.openai(key, max_retries=0).chat.completions.create(
        model=MODEL, messages=STORY, stream=True, max_tokens=2000
    )
    next(iter(stream))
    assert open_holds(instance, "gateway:") == 1
    killed_and_back(instance, "gateway")
    with pytest.raises(openai.APIConnectionError):
        for _ in stream:
            pass
    until(lambda: open_holds(instance, "gateway:") == 0, what="the hold's return")
    wallet = instance.wallet(key)
    assert Decimal(wallet["available_usd"]) == Decimal(wallet["balance_usd"])
    # Its count died with it, and what is not known is not priced.
    assert Decimal(wallet["balance_usd"]) == 1
    # And the next request is served and paid as ever.
    client = instance.openai(key, max_retries=8)
    until(lambda: _answers(client), what="the gateway")
    instance.verify()


def _answers(client: openai.OpenAI) -> bool:
    try:
        client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=2)
    except openai.APIError:
        return False
    return True


def test_control_plane_killed_while_a_lease_starts_and_while_one_drains(
    instance: Instance,
) -> None:
    _, key = instance.tenant("control killed")
    script = "trap 'sleep 2; exit 6' TERM; echo began; while :; do sleep 0.1; done"
    lease = instance.lease(key, command=["sh", "-c", script])
    killed_and_back(instance, "control")
    until(lambda: api_answers(instance), what="the API")
    running = instance.await_lease(lease["id"], "running")
    assert instance.cli("lease", "logs", "--as-operator", lease["id"]).stdout == "began\n", (
        "it was started once"
    )
    assert instance.api("DELETE", f"/v1/leases/{lease['id']}", key=key).status_code == 202
    instance.await_lease(lease["id"], "draining")
    killed_and_back(instance, "control")
    until(lambda: api_answers(instance), what="the API")
    ended = instance.await_lease(lease["id"], "ended")
    assert (ended["end_reason"], ended["exit_code"]) == ("released", 6)
    assert ended["running_at"] == running["running_at"]
    until(lambda: open_holds(instance, f"lease:{lease['id']}") == 0, what="the hold's return")
    instance.verify()


def test_a_workload_whose_keeper_is_killed_is_lost_and_leaves_no_process(
    instance: Instance,
) -> None:
    _, key = instance.tenant("keeper killed")
    lease = instance.lease(key, command=["sh", "-c", "while :; do sleep 0.1; done"])
    instance.await_lease(lease["id"], "running")
    keepers = [
        pid
        for pid in instance.processes()
        if b"shim.py" in (command := Path(f"/proc/{pid}/cmdline").read_bytes())
        and lease["id"].encode() in command
    ]
    assert len(keepers) == 1
    os.kill(keepers[0], signal.SIGKILL)
    ended = instance.await_lease(lease["id"], "ended")
    assert ended["end_reason"] == "node_lost"
    assert not [
        pid
        for pid in instance.processes()
        if lease["id"].encode() in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    until(lambda: Decimal(instance.wallet(key)["held_usd"]) == 0, what="the hold's return")
    instance.verify()


def test_postgres_killed_under_load(instance: Instance) -> None:
    _, key = instance.tenant("postgres killed")
    client = instance.openai(key, max_retries=0)
    stop = threading.Event()
    served: list[int] = []
    odd: list[Exception] = []

    def load() -> None:
        while not stop.is_set():
            try:
                answer = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=3)
                assert answer.usage is not None
                served.append(answer.usage.completion_tokens)
            except (openai.APIStatusError, openai.APIConnectionError) as error:
                if getattr(error, "status_code", 503) != 503:
                    odd.append(error)
                stop.wait(0.1)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(served) >= 4)
        for _ in range(2):
            killed_and_back(instance, "postgres")
            before = len(served)
            until(lambda before=before: len(served) > before + 2, what="service after the crash")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert odd == []
    until(lambda: Decimal(instance.wallet(key)["held_usd"]) == 0, what="the holds' return")
    charged = sum(c["quantity"] for c in instance.charges(key) if c["sku"].endswith(":output"))
    # Whatever was served was charged, once; a request cut between the two may be charged too.
    assert sum(served) <= charged <= sum(served) + 3 * 4 * 2
    instance.verify()


def test_the_whole_of_it_killed_and_started_again(launch: Callable[..., Instance]) -> None:
    instance = launch(arguments=("--no-model",)).start()
    _, key = instance.tenant("all killed")
    lease = instance.lease(
        key, command=["sh", "-c", "echo began; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    )
    running = instance.await_lease(lease["id"], "running")
    instance.kill()
    instance.start()
    again = instance.show_lease(lease["id"])
    assert again["state"] == "running"
    assert again["running_at"] == running["running_at"]
    assert instance.cli("lease", "logs", "--as-operator", lease["id"]).stdout == "began\n"
    instance.verify()
    assert instance.stop() == 0
    assert instance.processes() == []
    instance.start()
    ended = instance.show_lease(lease["id"])
    assert (ended["state"], ended["end_reason"]) == ("ended", "shutdown")
    assert Decimal(instance.wallet(key)["held_usd"]) == 0
    instance.verify()
