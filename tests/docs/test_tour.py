"""The README's tour, run as a reader would run it, on an instance of its own."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
START_SECONDS = 300.0
STOP_SECONDS = 120.0
RUN_SECONDS = 480.0

_STEP = re.compile(
    r"<!-- tour: (?P<act>start|stop) -->|<!-- tour -->|^```(?P<language>\w*)\n(?P<block>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the tour asks of its reader."""

    act: str  # "start": in the first terminal; "stop": Ctrl-C there; "run": in the second
    commands: str = ""


def steps(text: str) -> list[Step]:
    """Read the tour; a shell block without a mark before it is refused."""
    found: list[Step] = []
    act = ""
    for match in _STEP.finditer(text):
        if match["block"] is None:
            act = match["act"] or "run"
            if act == "stop":
                found.append(Step(act))
                act = ""
        elif match["language"] == "sh":
            assert act, f"no test runs this block of {README.name}:\n{match['block']}"
            found.append(Step(act, match["block"]))
            act = ""
    return found


def test_every_shell_block_of_the_readme_is_part_of_the_tour() -> None:
    acts = [step.act for step in steps(README.read_text(encoding="utf-8"))]
    assert acts.count("start") == acts.count("stop") == 2
    assert acts.count("run") >= 9


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sublet-tour-"))
    yield path
    _kill(path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.e2e
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the demo model is not installed"
)
def test_the_tour_is_true(folder: Path) -> None:
    data = folder / "data"
    environment = _environment(data)
    terminal: subprocess.Popen[bytes] | None = None
    second_terminal = ""
    said = ""
    log = folder / "up.log"
    for step in steps(README.read_text(encoding="utf-8")):
        match step.act:
            case "start":
                terminal = _start(step.commands, environment, log, data)
            case "run":
                second_terminal += step.commands
            case _:
                assert terminal is not None
                said += _run(second_terminal, environment)
                second_terminal = ""
                _interrupt(terminal, data)
    for expected in (
        "waiting for     nothing",
        "cpu   interruptible",
        "Paris",
        '"charge_nanos":',
        "balance    $9.99",
        "model:gemma-3-270m:output",
        "hello from a leased slot",
        "an internal job runs",
        '"reason": "reclaimed"',
        "why           reclaimed",
        "internal_first  holds",
        "everything adds up",
        "name     acme",
        "(none)",
    ):
        assert expected in said, f"{expected!r} is not in what the tour printed:\n{said}"
    before, after = re.findall(r"balance +\$(4\.99\d+)", said)
    assert before == after, "the second tenant's wallet changed with the restart"
    assert "DIFFERENCE" not in said
    up = log.read_text(encoding="utf-8")
    assert up.count("Sublet is ready.") == 2
    assert "Traceback" not in up


def _environment(data: Path) -> dict[str, str]:
    """Return the reader's environment: free ports, a folder of its own, and nothing of ours."""
    foreign = ("SUBLET_", "OPENAI_", "MAKE", "MFLAGS", "PYTEST", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "SUBLET_DATA": str(data),
        "SUBLET_API_PORT": "0",
        "SUBLET_GATEWAY_PORT": "0",
        "SUBLET_GATEWAY_HTTP_PORT": "0",
        "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def _start(
    commands: str, environment: dict[str, str], log: Path, data: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as printed:
        terminal = subprocess.Popen(
            ["bash", "-c", commands],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,  # as a terminal has: Ctrl-C reaches all of it, and not us
        )
    until = time.monotonic() + START_SECONDS
    while not (data / "ready.json").exists():
        assert terminal.poll() is None, log.read_text(encoding="utf-8")
        assert time.monotonic() < until, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    return terminal


def _run(commands: str, environment: dict[str, str]) -> str:
    """Type `commands` into one shell; each must succeed."""
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert run.returncode == 0, f"exit {run.returncode}:\n{run.stdout}\n{run.stderr}"
    return run.stdout


def _interrupt(terminal: subprocess.Popen[bytes], data: Path) -> None:
    """Press Ctrl-C, and wait until nothing is left."""
    os.killpg(terminal.pid, signal.SIGINT)
    terminal.wait(timeout=STOP_SECONDS)
    assert not (data / "ready.json").exists()
    until = time.monotonic() + 5
    while left := _processes_of(data):
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.05)


def _processes_of(folder: Path) -> dict[int, str]:
    """Return every process that names `folder` in its command line or environment."""
    found: dict[int, str] = {}
    name = str(folder).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it just ended
            command = (process / "cmdline").read_bytes()
            if name in command or name in (process / "environ").read_bytes():
                found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    if not Path("/proc/self").exists():  # macOS
        listed = subprocess.run(
            ["ps", "-axww", "-o", "pid=,command="], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            pid, _, command_line = line.strip().partition(" ")
            if str(folder) in command_line:
                found[int(pid)] = command_line
    return found


def _kill(folder: Path) -> None:
    """Leave nothing behind when the test fails half way."""
    ready = folder / "data" / "ready.json"
    if ready.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(ready.read_text(encoding="utf-8"))["pid"], signal.SIGTERM)
        until = time.monotonic() + STOP_SECONDS
        while ready.exists() and time.monotonic() < until:
            time.sleep(0.1)
    for pid in _processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
