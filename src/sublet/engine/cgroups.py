"""Limits on a whole workload, by control groups: version 2, or version 1's memory and pids.

They are what holds when Sublet runs as root. Where none can be made (an ordinary user
without a delegated group), resource limits stand in; see `sandbox.py` and `shim.py`.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

MOUNT: Final = Path("/sys/fs/cgroup")
# The sandbox's own processes: bwrap outside, its process 1 inside, and the shell that starts
# the command.
OVERHEAD: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroups:
    """The folders below which a group for each workload can be made."""

    memory: Path | None
    pids: Path | None
    version: int

    def limits(
        self, workload: UUID, *, memory_bytes: int | None, processes: int | None
    ) -> dict[Path, dict[str, str]]:
        """Return the groups to make for one workload: folder → file → value.

        There is one also where nothing is limited: it says which processes are the workload's.
        """
        groups: dict[Path, dict[str, str]] = {}
        name = f"sublet-{workload}"
        if self.memory is not None:
            files = groups.setdefault(self.memory / name, {})
            if memory_bytes is not None:
                v2 = self.version == 2
                files["memory.max" if v2 else "memory.limit_in_bytes"] = str(memory_bytes)
                # Without this a workload goes on in swap, at the expense of everybody.
                swap = "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes"
                if (self.memory / swap).exists():  # not where swap is not accounted for
                    files[swap] = "0" if v2 else str(memory_bytes)
        if self.pids is not None:
            files = groups.setdefault(self.pids / name, {})
            if processes is not None:
                files["pids.max"] = str(processes + OVERHEAD)
        return groups


def find_cgroups(mount: Path = MOUNT, own: str | None = None) -> Cgroups | None:
    """Look where a group can really be made and limited; None where nowhere."""
    try:
        own = Path("/proc/self/cgroup").read_text() if own is None else own
    except OSError:
        return None
    paths: dict[str, Path] = {}  # controller → our own group's folder; "" is version 2's
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            folder = mount / controller if controller else mount
            paths[controller] = folder / path.lstrip("/")

    if "memory" in paths or "pids" in paths:
        memory = _usable(paths.get("memory"), "memory.limit_in_bytes")
        pids = _usable(paths.get("pids"), "pids.max")
        return Cgroups(memory=memory, pids=pids, version=1) if memory or pids else None
    for parent in _parents(mount, paths.get("")):
        if _usable(parent, "memory.max") and _usable(parent, "pids.max"):
            return Cgroups(memory=parent, pids=parent, version=2)
    return None


def _parents(mount: Path, own: Path | None) -> Iterator[Path]:
    """Yield version 2's groups that may have children with limits.

    A group that holds processes cannot (the root can), so our own serves only where somebody
    prepared it; as root there is a group of Sublet's own beside the system's.
    """
    for parent in filter(None, (own, mount / "sublet")):
        with contextlib.suppress(OSError):
            if parent == mount / "sublet":
                parent.mkdir(exist_ok=True)
            (parent / "cgroup.subtree_control").write_text("+memory +pids")
            yield parent


def _usable(parent: Path | None, file: str) -> Path | None:
    """Return `parent` if a child of it can be made and has the file that limits it."""
    if parent is None:
        return None
    probe = parent / f"sublet-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError:
        return None
    try:
        return parent if (probe / file).exists() else None
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir()


def clear(groups: Iterable[Path]) -> bool:
    """Kill what is left in these groups and remove them; True once they are gone."""
    gone = True
    for path in groups:
        for _ in range(20):
            with contextlib.suppress(OSError):
                for pid in (path / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                path.rmdir()
            if not path.exists():
                break
            time.sleep(0.005)
        gone &= not path.exists()
    return gone
