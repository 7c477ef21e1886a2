"""Look after one workload: start it once, fence it, and record how it ended.

Run as `python -I -S shim.py DIRECTORY`, detached, with nothing but the standard library.
The shim outlives the control plane: with Sublet dead, a workload still stops when its notice
is over and never outlives its deadline, which is what was paid for.

It goes by the seconds since the machine started, which nobody can set: a clock that is put
forward must not end what was paid for, nor one that is put back let it run on.

It reads what the engine writes into DIRECTORY (`launch.json`, `deadline`, `stop.json`) and
writes what the engine reads (`launched`, `status.json`, `log`). README.md has the layout.
"""

import base64
import contextlib
import ctypes
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

POLL_MS: Final = 100
LINUX: Final = sys.platform == "linux"
_BLOCK: Final = 1024  # longer than any of our small files
_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` so that, whatever dies when, a reader finds all of it or the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - it is a descriptor
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    temporary.rename(path)
    sync_folder(path.parent)


def overwrite_durably(path: Path, data: bytes) -> None:
    """Write over the beginning of a file that is there, of at most one disk block.

    It takes no room, so it succeeds on a full disk. A reader may find it half written.
    """
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data.ljust(os.fstat(descriptor).st_size), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path) -> None:
    """Make a file that has its room on the disk, for `overwrite_durably`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, b" " * _BLOCK, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take the workload's lock and return its descriptor; None while a shim holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def steady_seconds() -> float:
    """Return the seconds since this machine started. Whoever sets its clock does not set these."""
    boottime: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _processes() -> Iterator[tuple[int, int, int]]:
    """Yield (pid, parent's pid, process group) of everything that runs; Linux only."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names, and many of them
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_bytes()
                # The command's name is in brackets and may hold anything, brackets too.
                _, parent, group = stat[stat.rindex(b")") + 2 :].split(maxsplit=3)[:3]
                yield int(name), int(parent), int(group)


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent, _ in _processes():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    wave = [root]
    while wave:
        wave = [child for pid in wave for child in children.get(pid, ())]
        found += wave
    return found


class _Watched:
    """A file that the engine replaces: read again only when it is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None

    def news(self) -> bytes | None:
        try:
            stat = self._path.stat()
            if (seen := (stat.st_ino, stat.st_mtime_ns)) == self._seen:
                return None
            self._seen = seen
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def forget(self) -> None:
        """Read it again, though it be the same."""
        self._seen = None


class Output(Protocol):
    """Where what a workload prints goes."""

    def write(self, data: bytes) -> None: ...


class _Log:
    """What the workload printed, up to a limit; what follows is drained and dropped."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._room = limit
        self._cut = f"\n[sublet] the log was cut here, at {limit} bytes\n".encode()

    def write(self, data: bytes) -> None:
        if self._room < 0:
            return
        kept = data[: self._room]
        self._room -= len(data)
        if self._room < 0:
            kept += self._cut
        # A full disk costs the workload its log, not its life.
        with contextlib.suppress(OSError):
            while kept:
                kept = kept[os.write(self._file, kept) :]


class Shim:
    def __init__(self, folder: Path, launch: Mapping[str, Any]) -> None:
        self.folder = folder
        self.launch = launch
        self.log = self.open_log()
        self.child = 0
        self.inner = 0  # process 1 inside the sandbox, as numbered out here
        self.info = b""
        self.exit_code: int | None = None
        self.told = False  # SIGTERM was delivered
        self.kill_at: float | None = None  # in steady seconds, as is the deadline
        self.deadline: float | None = None
        self.detail: str | None = None
        self.tunnelled = launch.get("tunnel") is None  # or there is nothing to do
        self.alarms: Sequence[int] = ()  # readable when there is something to look at, now
        self._deadline_file = _Watched(folder / "deadline")
        self._stop_file = _Watched(folder / "stop.json")

    def open_log(self) -> Output:
        return _Log(self.folder / "log", self.launch["log_bytes"])

    def run(self) -> None:
        self.read_orders()
        if (why := self.overdue()) is not None or self.kill_at is not None:
            self.record(None, why or "it was stopped before it started")
            return

        self.make_cgroups()
        # Room for its last word is taken before its first: a full disk must not lose it.
        reserve(self.folder / ".status.last")
        write_durably(self.folder / "launched", b"")
        output, error, info = self.spawn()
        # Read until exec closes it: then the child is up, or has said why it is not.
        if failure := _read_all(error).decode(errors="replace"):
            self.detail = failure
            started_at = None
        else:
            started_at = self.now()
            self.record(started_at, None)
        self.watch(output, info)

        self.clear_away()
        self.pump(output, until_empty=True)
        if self.remove_cgroups() and self.exit_code == 128 + signal.SIGKILL:
            self.detail = self.detail or "it used more memory than its limit and was killed"
        self.record(started_at, self.detail)

    def record(self, started_at: datetime | None, detail: str | None) -> None:
        """Write status.json: a first time when it is up, a last time when nothing is left."""
        exited_at = None if started_at and self.exit_code is None else self.now()
        status = {
            "started_at": started_at and started_at.isoformat(),
            "exited_at": exited_at and exited_at.isoformat(),
            "exit_code": self.exit_code,
            "detail": detail,
        }
        text = json.dumps(status).encode()
        try:
            write_durably(self.folder / "status.json", text)
        except OSError:
            if exited_at is None:
                return  # it runs all the same, and its last word says when it started
            overwrite_durably(self.folder / ".status.last", text)
            (self.folder / ".status.last").rename(self.folder / "status.json")

    # ---- what the engine asked for

    def now(self) -> datetime:
        """Return the time by the engine's clock, which need not be what this machine's says."""
        return datetime.fromtimestamp(steady_seconds() + self.launch["clock_offset"], UTC)

    def read_orders(self) -> None:
        if (news := self._deadline_file.news()) is not None:
            try:
                self.deadline = json.loads(news)["steady_seconds"]
            except ValueError:
                if self.deadline is None:
                    raise  # nothing runs without a fence
                self._deadline_file.forget()  # half written over the one before
        if (news := self._stop_file.news()) is not None:
            self.kill_at = json.loads(news)["stops_at_steady_seconds"]

    def overdue(self) -> str | None:
        """Say why it must be dead by now, if it must."""
        now = steady_seconds()
        if self.deadline is not None and now >= self.deadline:
            return "it reached its deadline and was killed"
        if self.kill_at is not None and now >= self.kill_at:
            return "its notice was over and it was killed"
        return None

    # ---- limits of the whole workload

    def make_cgroups(self) -> None:
        for group in self.launch["cgroups"]:
            path = Path(group["path"])
            path.mkdir(exist_ok=True)
            for name, value in group["limits"].items():
                (path / name).write_text(value)

    def remove_cgroups(self) -> bool:
        """Remove them, and say whether the kernel killed something for want of memory."""
        starved = False
        for group in self.launch["cgroups"]:
            path = Path(group["path"])
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    rows = (line.split() for line in (path / name).read_text().splitlines())
                    starved |= any(row[0] == "oom_kill" and row[1] != "0" for row in rows)
            for _ in range(20):  # the kernel empties a group a moment after its last process
                with contextlib.suppress(OSError):
                    path.rmdir()
                if not path.exists():
                    break
                time.sleep(0.005)
        return starved

    # ---- the child

    def spawn(self) -> tuple[int, int, int]:
        """Fork and exec. Returns what to read: its output, why exec failed, bwrap's info."""
        output, output_end = os.pipe()
        error, error_end = os.pipe()
        info, info_end = os.pipe()
        shim = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            try:
                self.become(shim, output_end, info_end)
            except Exception as failure:  # noqa: BLE001 - whatever it is, it must be told
                os.write(error_end, f"it could not be run: {failure}".encode())
            os._exit(127)
        for end in (output_end, error_end, info_end):
            os.close(end)
        os.set_blocking(output, False)
        os.set_blocking(info, False)
        return output, error, info

    def become(self, shim: int, output: int, info: int) -> None:
        """Turn this fresh fork into the workload. Only returns by raising."""
        _prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != shim:  # it died before the line above
            os._exit(127)
        os.setsid()
        for group in self.launch["cgroups"]:
            (Path(group["path"]) / "cgroup.procs").write_text("0")
        if LINUX:
            if (cores := self.launch["cores"]) is not None:
                os.sched_setaffinity(0, cores)
            # When the machine itself runs out of memory, workloads go before the ledger does.
            Path("/proc/self/oom_score_adj").write_text("500")
            if (limit := self.launch["address_space_bytes"]) is not None:
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Python ignores these; what is ignored stays so across exec.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(self.launch["directory"])
        os.dup2(output, 1)
        os.dup2(output, 2)
        command = [*self.sandbox_options(info), *self.launch["command"]]
        os.execvpe(command[0], command, {**os.environ, **self.launch["environment"]})  # noqa: S606

    def sandbox_options(self, info: int) -> list[str]:
        """Return bwrap's command line. Its options go through a file: ps shows a command line."""
        sandbox = self.launch["sandbox"]
        if sandbox is None:
            return []
        options = _memory_file(b"".join(arg.encode() + b"\0" for arg in sandbox["options"]))
        rules = _memory_file(base64.b64decode(sandbox["seccomp"]))
        os.set_inheritable(info, True)
        filters = ["--seccomp", str(rules)] if sandbox["seccomp"] else []
        head = [sandbox["program"], "--args", str(options), "--info-fd", str(info)]
        return [*head, *filters, "--"]

    def watch(self, output: int, info: int) -> None:
        """Pump the log and carry out orders until the command itself has ended."""
        poll = select.poll()
        poll.register(output, select.POLLIN)
        for alarm in self.alarms:
            poll.register(alarm, select.POLLIN)
        while self.exit_code is None:
            for descriptor, _ in poll.poll(POLL_MS):
                more = self.hear if descriptor in self.alarms else self.pump
                if not more(descriptor):  # it closed its output, yet may run on
                    poll.unregister(descriptor)
            self.read_info(info)
            self.open_tunnel()
            self.read_orders()
            if (why := self.overdue()) is not None:
                self.detail = why
                self.kill()
            elif self.kill_at is not None and not self.told:
                self.told = self.tell()
            self.reap()

    def hear(self, alarm: int) -> bool:
        """Take up what an alarm says; False when it will say no more."""
        return bool(os.read(alarm, 1 << 10))

    def pump(self, output: int, *, until_empty: bool = False) -> bool:
        """Move some output to the log; False once there is nobody left to write more."""
        with contextlib.suppress(BlockingIOError):
            # Not for ever: a flood must not keep us from the clock.
            for _ in range(1 << 20 if until_empty else 16):
                data = os.read(output, 1 << 16)
                if not data:
                    return False
                self.log.write(data)
        return True

    def read_info(self, info: int) -> None:
        if self.launch["sandbox"] is None or self.inner:
            return
        with contextlib.suppress(BlockingIOError):
            self.info += os.read(info, 1 << 12)
        with contextlib.suppress(ValueError):  # not all of it yet
            self.inner = json.loads(self.info)["child-pid"]

    def open_tunnel(self) -> None:
        """Start the node's end of its tunnel, once the workload is up. It dies with us."""
        if self.tunnelled or (self.launch["sandbox"] is not None and not self.inner):
            return
        self.tunnelled, tunnel = True, self.launch["tunnel"]
        room = "" if self.launch["sandbox"] is None else f"/proc/{self.inner}/root"
        command = [sys.executable, "-I", "-S", tunnel["program"], room + tunnel["socket"]]
        if os.fork() == 0:
            try:
                _prctl(_DEATH_SIGNAL, signal.SIGKILL)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the workload
                os.execve(command[0], command, {"SUBLET_TUNNEL_URL": tunnel["url"]})  # noqa: S606
            finally:
                os._exit(127)

    def tell(self) -> bool:
        """Send SIGTERM to the command and its group; False while it is not up yet.

        bwrap dies of a SIGTERM and takes everything with it, and process 1 of the sandbox
        ignores it. So the signal goes to the group of process 1, in which the command is.
        """
        if self.launch["sandbox"] is None:
            group = self.child
        else:
            group = self.inner
            if group == 0 or not any(g == group and pid != group for pid, _, g in _processes()):
                return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
        return True

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.launch["sandbox"] is None:
                os.killpg(self.child, signal.SIGKILL)
            else:
                # Outside bwrap's own reach nothing is left: its death is that of process 1
                # inside (--die-with-parent), which is the end of all in its namespace.
                os.kill(self.child, signal.SIGKILL)

    def reap(self) -> bool:
        """Collect every dead child; False when no child is left at all."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid == self.child:
                    code = os.waitstatus_to_exitcode(status)
                    self.exit_code = 128 - code if code < 0 else code
        except ChildProcessError:
            return False
        return True

    def clear_away(self) -> None:
        """Kill all that the command left behind, and return once it is gone.

        We are the subreaper of everything below, so a daemon that left its session and its
        parents comes back to us as a child. Not until there is none are the slots free.
        """
        pause = 0.001
        while self.reap():
            if LINUX:
                for pid in _descendants(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        if not LINUX:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child, signal.SIGKILL)


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _memory_file(data: bytes) -> int:
    descriptor = os.memfd_create("sublet", 0)  # inheritable: bwrap reads it
    os.write(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def main(folder: Path) -> None:
    # Whatever the control plane had open when it spawned us is none of our business.
    os.closerange(3, 1 << 16)
    for _ in range(20):
        # The engine holds the lock for an instant now and then; another shim for its life.
        if try_lock(folder / "lock") is not None:
            break
        time.sleep(0.025)
    else:
        return
    if (folder / "launched").exists() or (folder / "status.json").exists():
        return  # it was started before: never twice
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A handler, not SIG_IGN: the workload must not inherit that we stay.
        signal.signal(number, lambda *_: None)
    _prctl(_SUBREAPER, 1)
    launch = json.loads((folder / "launch.json").read_bytes())
    (folder / "launch.json").unlink()  # it may hold secrets, and has served
    Shim(folder, launch).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
