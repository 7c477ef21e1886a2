"""What no engine of ours can run, said before anything is touched."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from sublet.core.errors import Invalid
from sublet.engine.port import Node, Workload
from sublet.engine.sandbox import RESERVED
from sublet.engine.slots import slots_of

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check(workload: Workload, nodes: Sequence[Node]) -> None:
    """Return if `workload` could run on `nodes` once they are empty.

    Raises:
        Invalid: it never can, as written.
    """
    there = slots_of(nodes, workload.gpu_model)
    if workload.gpus < 1:
        raise Invalid(f"a workload needs at least one slot, not {workload.gpus}")
    if workload.gpus > there:
        raise Invalid(f"{workload.gpus} slots of {workload.gpu_model!r} asked for, of {there}")
    if not workload.command or not workload.command[0]:
        raise Invalid("the command is empty")
    if any("\0" in word for word in workload.command):
        raise Invalid("the command holds a NUL character")
    for name, value in workload.environment.items():
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise Invalid(f"{name[:40]!r} cannot be the name of an environment variable")
        if "\0" in value:
            raise Invalid(f"the environment variable {name} holds a NUL character")
    for name in workload.files:
        _check_path(name)
        if any(other.startswith(f"{name}/") for other in workload.files):
            raise Invalid(f"{name[:80]!r} is both a file and a folder")
    for what, limit in (("memory", workload.memory_bytes), ("processes", workload.processes)):
        if limit is not None and limit < 1:
            raise Invalid(f"the limit of {what} must be positive, not {limit}")


def _check_path(name: str) -> None:
    path = PurePosixPath(name)
    # As written: "a//b" or "./a" would be a second name for the same file.
    if str(path) != name or path.is_absolute() or not path.parts or ".." in path.parts:
        raise Invalid(f"a file's path must be plain and relative, not {name[:80]!r}")
    if "\0" in name or any(len(part.encode()) > 255 for part in path.parts):
        raise Invalid(f"{name[:80]!r} cannot be the name of a file")
