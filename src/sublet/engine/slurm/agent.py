"""What a lease's Slurm job runs: the shim, and what Slurm asks of it besides.

Run on a compute node as `python3 -I -S agent.pyz FOLDER`, with `--nodes N` on the first of
several, which starts it with `--one-of-several` on each of them; with nothing but Python's
standard library. It hears three voices, and the earliest end wins:

- ours, by files in FOLDER: the deadline, and the notice (SIGUSR1: look now);
- Slurm's, by SIGTERM, when it preempts the job, an administrator cancels it, or its time limit
  nears. Then the agent gives the notice itself: with Sublet dead, the tenant is told all the same.
"""

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from sublet.engine.shim import (
    _SUBREAPER,
    Output,
    Shim,
    _Log,
    _prctl,
    _Watched,
    steady_seconds,
    try_lock,
    write_durably,
)

_MESSAGE: Final = "An internal job needs these GPUs; save your work now."
_ANOTHER_FAILED: Final = b"!"
_GPU_VARIABLES: Final = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "GPU_DEVICE_ORDINAL")


class Cluster:
    """What Slurm said to this process since it started."""

    def __init__(self) -> None:
        self.told_at: datetime | None = None
        self.look = False
        self.relay: int | None = None  # what the first of several nodes says to each
        # A signal alone does not end a wait: Python takes it up again. What it writes here does.
        self.alarm, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGUSR1, self._poked)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            # A handler, not SIG_IGN: the workload must not inherit that we stay.
            signal.signal(number, lambda *_: None)

    def _told(self, *_: object) -> None:
        self.told_at = self.told_at or datetime.now(UTC)

    def _poked(self, *_: object) -> None:
        self.look = True


class Relayed:
    """Where the output of one node of several goes: by srun to the first node, which keeps it."""

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(1, data) :]


class NodeShim(Shim):
    """A shim whose orders lie in the lease's folder, and whose own files may lie elsewhere."""

    def __init__(
        self, folder: Path, launch: Mapping[str, Any], *, orders: Path, cluster: Cluster
    ) -> None:
        self.orders = orders
        self.cluster = cluster
        self.another_failed = False
        super().__init__(folder, launch)
        self.alarms = [cluster.alarm] if cluster.relay is None else [cluster.alarm, cluster.relay]
        self._deadline_file = _Watched(orders / "deadline")
        self._stop_file = _Watched(orders / "stop.json")

    def open_log(self) -> Output:
        return super().open_log() if self.cluster.relay is None else Relayed()

    def hear(self, alarm: int) -> bool:
        said = os.read(alarm, 1 << 10)
        if alarm == self.cluster.relay:
            self.cluster.look = True
            if _ANOTHER_FAILED in said:
                self.another_failed = True
        return bool(said)

    def overdue(self) -> str | None:
        return "another of its nodes failed" if self.another_failed else super().overdue()

    def read_orders(self) -> None:
        if self.cluster.told_at is not None:
            give_notice(self.orders, self.launch, self.cluster.told_at)
        if self.cluster.look:
            self.cluster.look = False
            os.listdir(self.orders)  # noqa: PTH208 -- a network file system looks anew
        # Seconds since a machine started mean nothing on another: the instants are what counts.
        if (news := self._deadline_file.news()) is not None:
            try:
                self.deadline = self.steady_at(json.loads(news)["instant"])
            except ValueError:
                if self.deadline is None:
                    raise  # nothing runs without a fence
                self._deadline_file.forget()  # half written over the one before
        if (news := self._stop_file.news()) is not None:
            self.kill_at = self.steady_at(json.loads(news)["stops_at"])

    def steady_at(self, instant: str) -> float:
        """Return an instant of the control plane's clock in seconds since this node started."""
        left = datetime.fromisoformat(instant) - _ours(datetime.now(UTC), self.launch)
        return steady_seconds() + left.total_seconds()


def _ours(instant: datetime, launch: Mapping[str, Any]) -> datetime:
    """Return an instant of this cluster's clocks on the control plane's."""
    return instant - timedelta(seconds=launch["ahead_seconds"])


def give_notice(orders: Path, launch: Mapping[str, Any], heard_at: datetime) -> None:
    """Write the notice that Slurm's SIGTERM stands for, once; an earlier end of ours stands."""
    if (orders / "preempted").exists():
        return
    told_at = _ours(heard_at, launch)
    stops_at = told_at + timedelta(seconds=launch["grace_seconds"])
    notice = {
        "reason": "reclaimed",
        "message": _MESSAGE,
        "noticed_at": told_at.isoformat(),
        "stops_at": stops_at.isoformat(),
    }
    with contextlib.suppress(FileNotFoundError):
        ours = json.loads((orders / "stop.json").read_bytes())
        notice = ours | {
            "stops_at": min(datetime.fromisoformat(ours["stops_at"]), stops_at).isoformat()
        }
    text = json.dumps(notice).encode()
    write_durably(orders / "box" / "notice.json", text, mode=0o644)
    write_durably(orders / "stop.json", text)
    write_durably(orders / "preempted", told_at.isoformat().encode())


def devices(variables: Mapping[str, str]) -> list[str]:
    """Return the device files of the GPUs that Slurm gave this step."""
    for name in _GPU_VARIABLES:
        if found := re.findall(r"\d+", variables.get(name, "")):
            return [f"/dev/nvidia{number}" for number in found]
    return []


def prepare(launch: dict[str, Any], folder: Path, own: Path, variables: Mapping[str, str]) -> None:
    """Add what only this node knows: which GPUs it has, and which of the lease's nodes it is."""
    known = {
        "SUBLET_NODE": variables.get("SLURM_NODEID", "0"),
        "SUBLET_NODES": variables.get("SLURM_JOB_NUM_NODES", "1"),
        "SUBLET_NODE_LIST": variables.get("SLURM_JOB_NODELIST", ""),
    }
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in variables:
            known[name] = variables[name]
    launch["environment"] = {**launch["environment"], **known}
    sandbox = launch["sandbox"]
    if launch.get("tunnel") is not None and known["SUBLET_NODE"] != "0":
        launch["tunnel"] = None  # one of several is enough
    if sandbox is None:
        return
    environment = own / "environment.node"
    text = (folder / "environment").read_text(encoding="utf-8")
    text += "".join(f"export {name}={shlex.quote(value)}\n" for name, value in known.items())
    environment.write_text(text, encoding="utf-8")
    environment.chmod(0o644)
    options = [
        str(environment) if option == str(folder / "environment") else option
        for option in sandbox["options"]
    ]
    at = options.index("--remount-ro")  # before /dev is closed
    binds = [
        word
        for device in (*devices(variables), "/dev/nvidiactl", "/dev/nvidia-uvm")
        for word in ("--dev-bind-try", device, device)
    ]
    sandbox["options"] = [*options[:at], *binds, *options[at:]]


def look_after(folder: Path, cluster: Cluster) -> int:
    """Run the lease on this node; return the exit status."""
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    own = folder if rank == 0 else folder / f"node-{rank}"
    own.mkdir(exist_ok=True)
    if try_lock(own / "lock") is None:
        return 0
    if (own / "launched").exists() or (own / "status.json").exists():
        return 0  # Slurm ran this job again, or there are two of it: never twice
    _prctl(_SUBREAPER, 1)
    launch = json.loads((folder / "launch.json").read_bytes())
    launch["clock_offset"] = _ours(datetime.now(UTC), launch).timestamp() - steady_seconds()
    prepare(launch, folder, own, os.environ)
    shim = NodeShim(own, launch, orders=folder, cluster=cluster)
    shim.run()
    code = 1 if shim.exit_code is None else shim.exit_code
    if cluster.relay is not None and code and shim.overdue() is None and shim.kill_at is None:
        write_durably(
            folder / "failed.json", json.dumps({"node": rank, "exit_code": code}).encode()
        )
    return code


def relay(folder: Path, nodes: int, cluster: Cluster) -> int:
    """Start an agent on each node, hand on what Slurm tells only the first of them, keep the log.

    Each line of the log begins with the number of its node, as srun numbers them.
    """
    if (folder / "launched").exists():
        return 0
    command = [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--input=all",
        # A node that fails ends the others by us: srun would rob them of a notice under way.
        "--kill-on-bad-exit=0", "--wait=0", "--label", "--mem=0",
        f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}",
        sys.executable, "-I", "-S", sys.argv[0], str(folder), "--one-of-several",
    ]  # fmt: skip
    launch = json.loads((folder / "launch.json").read_bytes())
    log = _Log(folder / "log", launch["log_bytes"])
    failed = folder / "failed.json"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = process.stdout.fileno()
        listened = [cluster.alarm, output]
        told = False
        while process.poll() is None or output in listened:
            if cluster.told_at is not None:
                give_notice(folder, launch, cluster.told_at)
            if cluster.look:
                cluster.look = False
                _say(process.stdin, b".")
            if not told and failed.exists():
                told = True
                _say(process.stdin, _ANOTHER_FAILED)
            ready, _, _ = select.select(listened, [], [], 0.1)
            if cluster.alarm in ready:
                os.read(cluster.alarm, 1 << 10)
            if output in ready:
                text = os.read(output, 1 << 16)
                log.write(text)
                if not text:
                    listened.remove(output)
    if told:
        return int(json.loads(failed.read_bytes())["exit_code"])
    return process.returncode


def _say(there: IO[bytes], word: bytes) -> None:
    """Say something to every node, by srun: it waits for those that are not up yet."""
    with contextlib.suppress(BrokenPipeError):
        there.write(word + b"\n")
        there.flush()


def main() -> None:
    cluster = Cluster()
    os.environ.pop("SLURM_JWT", None)
    folder = Path(sys.argv[1])
    match sys.argv[2:]:
        case ["--nodes", nodes]:
            code = relay(folder, int(nodes), cluster)
        case more:
            if more:
                cluster.relay = os.dup(0)  # it is not for the workload
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = look_after(folder, cluster)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what comes late must not look like its end
    sys.exit(code)
