"""Named steps at which a test can kill, stop or cut off this process.

    failpoint("lease.start.before_engine")

Off, which is always outside of tests, a failpoint is one look at a global. A test arms a
process by `SUBLET_FAILPOINTS`, a folder:

    plan      lines of `PATTERN ACTION`; read again at every point, so it may change
    reached/  a file for each point that was reached: so the suite finds them all by running once
    fired/    a file for each point and action that happened: each happens once, also over restarts

Every transaction that writes has two points of its own, just before and just after its COMMIT,
named after the function that opened it: nobody can forget to give it one.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from sublet.core.errors import Unavailable

VARIABLE: Final = "SUBLET_FAILPOINTS"
_TURNS: Final = (
    threading.Lock()
)  # who dies here dies alone: no other thread's step counts as passed
_folder: Path | None = None  # None: off


class Action(StrEnum):
    KILL = "kill"  # the power button
    PAUSE = "pause"  # as a debugger does, or a machine that swaps: until somebody sends SIGCONT
    DROP = "drop"  # the connection to the database is cut; only where there is one
    ERROR = "error"  # what we depend on did not answer


def arm(environment: Mapping[str, str]) -> bool:
    """Arm this process if `environment` says so; return whether it is armed."""
    global _folder  # noqa: PLW0603 -- one a process, and what an unarmed one looks at
    given = environment.get(VARIABLE)
    _folder = None if not given else Path(given)
    return _folder is not None


def armed() -> bool:
    return _folder is not None


def failpoint(name: str, *, drop: Callable[[], None] | None = None) -> None:
    """Come past the step `name`; when a test planned it, do not come out on the other side.

    Args:
        name: lower case words with dots, unique in the source.
        drop: cuts the connection that is in use here.

    Raises:
        Unavailable: `error` was planned here.
    """
    if _folder is not None:
        _reach(_folder, name, drop)


def _reach(folder: Path, name: str, drop: Callable[[], None] | None) -> None:
    with _TURNS:
        _once(folder / "reached" / name)
        for action in _planned(folder, name):
            if (action is not Action.DROP or drop is not None) and _once(
                folder / "fired" / f"{name} {action}"
            ):
                _act(action, name, drop)
                return


def _planned(folder: Path, name: str) -> list[Action]:
    try:
        lines = (folder / "plan").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    pairs = [line.split() for line in lines if line.strip()]
    return [Action(action) for pattern, action in pairs if fnmatchcase(name, pattern)]


def _once(mark: Path) -> bool:
    """Return whether we are the first to make this mark."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return False
    return True


def _act(action: Action, name: str, drop: Callable[[], None] | None) -> None:
    match action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.PAUSE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.DROP:
            assert drop is not None
            drop()
        case Action.ERROR:
            raise Unavailable(f"the failpoint {name} said so")
