"""Child processes that do not outlive us."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(sign: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn`: the kernel sends the child `sign` when its parent dies.

    The child must be started from the main thread: Linux means the parent *thread*. On
    other systems nothing happens here; there the child must watch its parent itself.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, sign)
            if os.getppid() != parent:  # it died before the request was made
                os.kill(os.getpid(), sign)

    return prepare


def stop(process: subprocess.Popen[bytes], *, sign: signal.Signals, wait_seconds: float) -> int:
    """Signal a child, wait for it, kill it if it stays; return its exit status."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sign)
        try:
            return process.wait(timeout=wait_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def wait_for(
    condition: Callable[[], bool], *, wait_seconds: float, every_seconds: float = 0.02
) -> bool:
    """Poll `condition` until it is true; False when the time is up."""
    until = time.monotonic() + wait_seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every_seconds)
    return True
