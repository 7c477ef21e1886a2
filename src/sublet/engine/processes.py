"""Shims and what they leave: who is alive, who is dead, and making sure of it."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.engine import cgroups
from sublet.engine.shim import try_lock

# Our children are the process's, whichever engine object spawned them; each is reaped here.
SHIMS: Final[set[int]] = set()


def shim_runs(folder: Path) -> bool:
    if (lock := try_lock(folder / "lock")) is None:
        return True
    os.close(lock)
    return False


def reap() -> None:
    for pid in list(SHIMS):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody else reaped it
            ended = pid
        if ended:
            SHIMS.discard(pid)


def kill_all(workload: UUID, folder: Path) -> bool:
    """Kill every process of a workload without a shim; True once none is left."""
    for _ in range(100):
        pids = survivors(workload)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.005)
    else:
        return False
    try:
        groups = json.loads((folder / "cgroups.json").read_bytes())
    except FileNotFoundError:
        groups = []
    return cgroups.clear(map(Path, groups))


def survivors(id_: UUID) -> list[int]:
    """Return the processes that carry this workload's mark in their environment."""
    mark = f"SUBLET_WORKLOAD_ID={id_}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it just ended, or is not ours to read
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
