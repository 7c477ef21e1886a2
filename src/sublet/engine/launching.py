"""From a record to a running shim: what it is told, and how it is detached from us."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.core.errors import Refused
from sublet.engine import shim
from sublet.engine import tunnel as tunnel_program
from sublet.engine.cgroups import Cgroups
from sublet.engine.hardware import Gpu
from sublet.engine.images import Images, refusal
from sublet.engine.port import Workload
from sublet.engine.records import Kind, Record
from sublet.engine.sandbox import NOTICE_FILE, PATH, SOCKET_FILE, Confinement, Sandbox
from sublet.engine.shim import write_durably

_SECRET: Final = ("SUBLET_", "DATABASE_URL")  # how the names of our own secrets begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """What all launches have in common."""

    root: Path  # hidden from every sandbox
    sandbox: Sandbox | None
    cgroups: Cgroups | None
    gpus: Sequence[Gpu]
    cores: Sequence[int] | None  # those that slots stand for; None: slots are no cores
    log_bytes: int
    images: Images | None = None
    tunnel: Path = Path(tunnel_program.__file__)  # where nodes see that program
    parent: Mapping[str, str]  # the environment that the operator's own workloads build on

    def launch(self, folder: Path, record: Record, *, clock_offset: float) -> int:
        """Spawn a shim for the workload in `folder` and return its process id, at once.

        `clock_offset` added to the machine's steady seconds is our clock's time.

        Raises:
            OSError: the machine has no room for it.
        """
        groups = self._groups(record)
        orders = self.orders(folder, record) | {"clock_offset": clock_offset}
        # Beside launch.json, which the shim removes: whoever buries a lost one needs the names.
        write_durably(folder / "cgroups.json", json.dumps([str(path) for path in groups]).encode())
        write_durably(folder / "launch.json", json.dumps(orders).encode())
        log = str(folder / "shim.log")
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(Path(shim.__file__)), str(folder)],
            self._inherited(record),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,  # a Ctrl-C in our terminal is not for it
        )

    def check_image(self, workload: Workload) -> None:
        """Raises Refused: it wants an image, and cannot be run on it here."""
        if workload.image is None:
            return
        confined = workload.sandboxed and self.sandbox is not None
        if (why := refusal(self.images, sandbox=confined)) is not None:
            raise Refused(f"image {workload.image}: {why}")
        self._image(workload.image)

    def _groups(self, record: Record) -> dict[Path, dict[str, str]]:
        if self.cgroups is None:
            return {}
        workload = record.workload
        return self.cgroups.limits(
            workload.id, memory_bytes=workload.memory_bytes, processes=workload.processes
        )

    def orders(self, folder: Path, record: Record) -> dict[str, object]:
        """Return what the shim is told, and furnish the sandbox in `folder` if there is one."""
        workload = record.workload
        sandbox: dict[str, object] | None = None
        command = list(workload.command)
        environment = self._environment(folder, record)
        directory = folder / "work"
        if record.confined:
            assert self.sandbox is not None, "a sandboxed workload was accepted without a sandbox"
            room = Confinement(
                id=workload.id,
                folder=folder,
                hidden=(self.root,),
                command=command,
                network=workload.network,
                memory_bytes=workload.memory_bytes,
                processes=workload.processes,
                image=self._image(workload.image),
                devices=[gpu.device for gpu in self._gpus(record)],
            )
            self.sandbox.furnish(room, environment)
            sandbox, command = self.sandbox.launch(room)
            environment = {"SUBLET_WORKLOAD_ID": str(workload.id)}  # the rest is in a file
            directory = folder
        limited_by_group = self.cgroups is not None and self.cgroups.memory is not None
        # CUDA reserves far more address space than it will ever use.
        stand_in = workload.gpu_model == "cpu" and not limited_by_group
        return {
            "command": command,
            "environment": environment,
            "directory": str(directory),
            "sandbox": sandbox,
            "cgroups": [
                {"path": str(path), "limits": limits}
                for path, limits in self._groups(record).items()
            ],
            "address_space_bytes": workload.memory_bytes if stand_in else None,
            "cores": self._cores(record),
            "log_bytes": self.log_bytes,
            "tunnel": None
            if workload.tunnel_url is None
            else {
                "program": str(self.tunnel),
                "url": workload.tunnel_url,
                "socket": _socket(folder, record),
            },
        }

    def _inherited(self, record: Record) -> dict[str, str]:
        """Return the shim's environment, which an unsandboxed command gets too."""
        if record.confined:
            return {"PATH": PATH}
        if record.kind is Kind.INTERNAL:
            return {k: v for k, v in self.parent.items() if not k.startswith(_SECRET)}
        return {k: v for k, v in self.parent.items() if k in {"PATH", "HOME", "LANG"}}

    def _environment(self, folder: Path, record: Record) -> dict[str, str]:
        workload = record.workload
        notice = NOTICE_FILE if record.confined else str(folder / "box" / "notice.json")
        ours = {
            "SUBLET_WORKLOAD_ID": str(workload.id),
            "SUBLET_NOTICE_FILE": notice,
            "SUBLET_SLOTS": str(workload.gpus),
        }
        if workload.notice_url is not None:
            ours["SUBLET_NOTICE_URL"] = workload.notice_url
        if workload.tunnel_url is not None:
            ours["SUBLET_SOCKET"] = _socket(folder, record)
        if workload.gpu_model != "cpu" and record.slots:
            names = [gpu.uuid for gpu in self._gpus(record)] or [str(s) for s in record.slots]
            ours["CUDA_VISIBLE_DEVICES"] = ",".join(names)
        return {**workload.environment, **ours}

    def _image(self, name: str | None) -> Path | None:
        return None if name is None or self.images is None else self.images.find(name)

    def _gpus(self, record: Record) -> list[Gpu]:
        alike = [gpu for gpu in self.gpus if gpu.model == record.workload.gpu_model]
        return [alike[slot] for slot in record.slots if slot < len(alike)]

    def _cores(self, record: Record) -> list[int] | None:
        if record.workload.gpu_model != "cpu" or self.cores is None:
            return None
        return [self.cores[slot] for slot in record.slots]


def _socket(folder: Path, record: Record) -> str:
    return SOCKET_FILE if record.confined else str(folder / "work" / "sublet.sock")
