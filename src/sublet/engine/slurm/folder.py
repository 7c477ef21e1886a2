"""The shared folder: one folder a lease, seen by the control plane and by compute nodes alike.

shared/                 mode 0700
├── bin/                agent.pyz and bwrap, of this version of Sublet
├── internal.json       which internal jobs were there when we last looked
├── <uuid>/             one lease; as the local engine's, see engine/README.md, and:
│   ├── submit.lock     held by sbatch as long as it runs, whatever becomes of us
│   ├── job             what sbatch printed: the job's number
│   ├── preempted       when Slurm itself told it to go                        agent
│   ├── node-N/          the agent's of node N, where there are several         agent
│   ├── failed.json      which of several nodes failed                          agent
│   └── end.json        the last thing to say of it                            engine
└── ended/<uuid>/       what has ended, without what was secret
"""

import fcntl
import hashlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from sublet.engine import shim, tunnel
from sublet.engine.port import Observation, Phase
from sublet.engine.shim import write_durably
from sublet.engine.slurm import agent

_SECRET: Final = ("launch.json", "environment", "environment.node", "files", "work", "etc", "box")


def install(root: Path, bwrap: str | None) -> tuple[Path, str | None]:
    """Put what runs on compute nodes into the shared folder; return its paths there.

    Raises:
        OSError: the folder cannot be written.
    """
    content = _archive()
    version = hashlib.sha256(content + Path(tunnel.__file__).read_bytes()).hexdigest()[:16]
    folder = root / "bin" / version
    folder.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    program = folder / "agent.pyz"
    if not program.exists():
        write_durably(program, content, mode=0o644)
    dialler = tunnel_of(program)
    if not dialler.exists():
        write_durably(dialler, Path(tunnel.__file__).read_bytes(), mode=0o644)
    if bwrap is None or bwrap.startswith("/usr/"):
        return program, bwrap  # a system's own is on every node
    return program, str(_copy_bwrap(Path(bwrap), folder))


def tunnel_of(agent: Path) -> Path:
    """Return where the node's end of tunnels lies, beside the agent."""
    return agent.with_name("tunnel.py")


def _copy_bwrap(bwrap: Path, folder: Path) -> Path:
    """Copy the wheel's program as it lies there: it finds its libraries beside its package."""
    package = bwrap.parent.parent
    there = folder / package.name / bwrap.parent.name / bwrap.name
    if not there.exists():
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name, dirs_exist_ok=True)
        there.parent.mkdir(parents=True, exist_ok=True)
        write_durably(there, bwrap.read_bytes(), mode=0o755)
    return there


def _archive() -> bytes:
    """Return the agent with what it imports, the same bytes each time."""
    parts = {
        "__main__.py": "from sublet.engine.slurm.agent import main\nmain()\n",
        "sublet/__init__.py": "",
        "sublet/engine/__init__.py": "",
        "sublet/engine/slurm/__init__.py": "",
        "sublet/engine/shim.py": Path(shim.__file__).read_text(encoding="utf-8"),
        "sublet/engine/slurm/agent.py": Path(agent.__file__).read_text(encoding="utf-8"),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


def submit_runs(folder: Path) -> bool:
    """Say whether an sbatch still runs that may yet submit this lease."""
    try:
        descriptor = os.open(folder / "submit.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def take_submit_lock(folder: Path) -> int | None:
    """Return a descriptor to hand to sbatch; None while another one has it."""
    descriptor = os.open(folder / "submit.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def job_key(folder: Path) -> str | None:
    """Return the number of the lease's job, if sbatch lived to tell it."""
    try:
        text = (folder / "job").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    return text.partition(";")[0] or None


def preempted_at(folder: Path) -> datetime | None:
    try:
        return datetime.fromisoformat((folder / "preempted").read_text(encoding="ascii"))
    except FileNotFoundError:
        return None


def failed_on(folder: Path) -> tuple[int, str] | tuple[None, None]:
    """Return the exit code and a sentence on the one of several nodes that failed first, if any."""
    try:
        row = json.loads((folder / "failed.json").read_bytes())
    except FileNotFoundError:
        return None, None
    code = int(row["exit_code"])
    return code, f"its command failed on node {row['node']} with exit code {code}"


def write_end(folder: Path, seen: Observation) -> None:
    row = {name: value.isoformat() if isinstance(value, datetime) else value
           for name, value in asdict(seen).items()}  # fmt: skip
    write_durably(folder / "end.json", json.dumps(row).encode())


def read_end(folder: Path) -> Observation | None:
    try:
        row = json.loads((folder / "end.json").read_bytes())
    except FileNotFoundError:
        return None
    instants = ("started_at", "exited_at", "reclaimed_at")
    times = {name: None if row[name] is None else datetime.fromisoformat(row[name])
             for name in instants}  # fmt: skip
    return Observation(
        phase=Phase(row["phase"]),
        exit_code=row["exit_code"],
        detail=row["detail"],
        started_at=times["started_at"],
        exited_at=times["exited_at"],
        reclaimed_at=times["reclaimed_at"],
    )


def archive(root: Path, id_: UUID) -> None:
    """Move what has ended aside, without what was secret or large."""
    here, there = root / str(id_), root / "ended" / str(id_)
    for name in _SECRET:
        path = here / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    try:
        here.rename(there)
    except OSError:
        if not there.exists():  # else another control plane of this database was faster
            raise
