"""A real Slurm for tests, by the script that anybody may use; and whether it can be had here."""

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm-cluster"


def _load() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("slurm_cluster", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # its dataclasses look themselves up
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


script = _load()


def need_slurm(*, accounting: bool = False, rest: bool = False) -> None:
    """Skip where Slurm is not installed, unless it is said to be required."""
    lack = script.missing(accounting=accounting, rest=rest)
    if lack is not None and os.environ.get("SUBLET_REQUIRE_SLURM"):
        pytest.fail(lack)
    if lack is not None:
        pytest.skip(lack)


@dataclass(frozen=True)
class Cluster:
    """One that runs. Its folder is removed with it."""

    inner: Any

    @property
    def folder(self) -> Path:
        return Path(self.inner.folder)

    @property
    def conf(self) -> str:
        return str(self.inner.conf)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": self.conf, "TZ": "UTC"}

    def run(self, *command: str) -> str:
        ran = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert ran.returncode == 0, (command, ran.stdout, ran.stderr)
        return ran.stdout.strip()

    def sbatch(self, command: str, *options: str, gpus: int | None = None) -> str:
        """Submit an internal job; return its number."""
        wish = [] if gpus is None else [f"--gres=gpu:{gpus}"]
        return self.run(
            "sbatch", "--parsable", "-p", "internal", "-o", "/dev/null", *wish, *options,
            f"--wrap={command}",
        )  # fmt: skip

    def state(self, job: str) -> str:
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")

    def clear(self) -> None:
        """End every job at once, and wait until no node is busy with any."""
        self.run("scancel", "--signal=KILL", "--full", "--state=RUNNING", "-u", "root")
        self.run("scancel", "-u", "root")
        until(lambda: not self.run("squeue", "-h", "-o", "%i"), what="an empty queue")


def until(look: Callable[[], Any], *, seconds: float = 240, what: str = "it") -> Any:
    """Poll `look` until it returns something true."""
    end = time.monotonic() + seconds
    while True:
        if found := look():
            return found
        assert time.monotonic() < end, f"{what} did not come to pass in {seconds} s"
        time.sleep(0.05)


@contextmanager
def cluster(*options: str) -> Iterator[Cluster]:
    need_slurm(accounting="--accounting" in options, rest="--rest" in options)
    folder = Path(tempfile.mkdtemp(prefix="sublet-slurm-"))
    inner = script.Cluster(folder)
    try:
        inner.up(script.arguments(["up", str(folder), *options]))
        yield Cluster(inner)
    finally:
        inner.down()
