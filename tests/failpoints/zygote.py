"""Starts control planes without loading their code again and again: it forks them, real and whole.

Reads a line of JSON, starts what it asks for, and answers with the new process's number. A
minute of a lease is three seconds here, and so is a day of a contract, so that its life fits into a test; and the machine's
clock is off by as many seconds as the file TEST_CLOCK says.
"""

import json
import os
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

from sublet.core import clock
from sublet.leases import blocks, reservation

blocks.BLOCK_SECONDS = 3  # type: ignore[misc] -- before whoever copies it is loaded
blocks.AHEAD = timedelta(seconds=2.5)  # type: ignore[misc]
reservation.DAY_SECONDS = 3  # type: ignore[misc] -- of contracts

from sublet.app import control, gateway, leadership  # noqa: E402 -- see above

leadership.STALE_SECONDS = 6.0  # type: ignore[misc]


def wall() -> datetime:
    file = os.environ.get("TEST_CLOCK")
    off = float(Path(file).read_text()) if file else 0.0
    return datetime.now(UTC) + timedelta(seconds=off)


clock.SystemClock.__init__.__kwdefaults__["wall"] = wall
PARTS: dict[str, ModuleType] = {"control": control, "gateway": gateway}


def start(order: dict[str, object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    try:
        os._exit(PARTS[str(order["part"])].main())
    finally:
        os._exit(70)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them for us
    for line in sys.stdin:
        print(start(json.loads(line)), flush=True)
