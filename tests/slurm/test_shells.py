"""What tenants really connect to: OpenSSH's server and Jupyter's, each in its sandbox on a node."""

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import httpx
import pytest
from tests.slurm.cluster import Cluster, until
from tests.slurm.control import SUBLET, Control

Start = Callable[[Cluster], Control]
SSHD = """\
HostKey /work/host_key
AuthorizedKeysFile /work/authorized_keys
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
Subsystem sftp internal-sftp
"""
# As docs/operate/slurm.md says it.
SERVE_SSH = """\
chmod 600 host_key; echo up
exec socat UNIX-LISTEN:"$SUBLET_SOCKET",fork EXEC:"/usr/sbin/sshd -i -f /work/sshd_config"
"""
SERVE_JUPYTER = 'exec jupyter-server --ServerApp.sock="$SUBLET_SOCKET" --ServerApp.token="$TOKEN"'


def need(program: str, package: str) -> None:
    """Skip where a program is not installed, unless it is said to be required."""
    if shutil.which(program, path=f"/usr/sbin:{os.environ['PATH']}") is None:
        lack = f"{program} is not installed: apt install {package}"
        (pytest.fail if os.environ.get("SUBLET_REQUIRE_SLURM") else pytest.skip)(lack)


def new_key(path: Path) -> Path:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True
    )
    return path


def as_tenant(control: Control) -> dict[str, str]:
    return os.environ | {
        "SUBLET_URL": control.url,
        "SUBLET_KEY": control.keys["tenant_key"],
        "SUBLET_DATA": str(control.data),
    }


def test_a_tenant_has_a_shell_and_copies_files_by_ssh(
    four_nodes: Cluster, run_on: Start, folder: Path
) -> None:
    for program, package in (("sshd", "openssh-server"), ("socat", "socat")):
        need(program, package)
    control = run_on(four_nodes)
    host, mine = new_key(folder / "host"), new_key(folder / "mine")
    files = {
        "host_key": host.read_bytes(),
        "authorized_keys": mine.with_suffix(".pub").read_bytes(),
        "sshd_config": SSHD.encode(),
    }
    lease = control.lease(
        "sh", "-c", SERVE_SSH, gpus=2, interactive=True,
        files={name: base64.b64encode(text).decode() for name, text in files.items()},
    )  # fmt: skip
    until(lambda: "up" in control.logs(lease), what="its command")
    known = folder / "known_hosts"
    known.write_text(f"lease {host.with_suffix('.pub').read_text()}")
    proxy = f"{quote(str(SUBLET))} lease connect {lease}"
    options = [
        "-F", "none", "-i", str(mine), "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known}",
        "-o", "StrictHostKeyChecking=yes", "-o", f"ProxyCommand={proxy}",
    ]  # fmt: skip

    def ssh(
        *command: str, key: Path = mine, under: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        with_key = [str(key) if word == str(mine) else word for word in options]
        return subprocess.run(
            [*under, "ssh", *with_key, "tenant@lease", *command], env=as_tenant(control),
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def whoami() -> str:
        return ssh("id -un; pwd; cat /proc/sys/kernel/hostname").stdout

    assert until(whoami, what="a shell") == "tenant\n/work\nsublet\n"
    assert ssh("exit 7").returncode == 7
    sent = folder / "sent"
    sent.write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    copied = subprocess.run(
        ["scp", *options, str(sent), "tenant@lease:/work/got"], env=as_tenant(control),
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert copied.returncode == 0, copied.stderr
    assert ssh("wc -c < /work/got").stdout.strip() == str(sent.stat().st_size)
    # Refused, ssh leaves: what it connected through does, too, although it ignores SIGHUP.
    stranger = ssh("true", key=new_key(folder / "stranger"), under=("env", "--ignore-signal=HUP"))
    assert stranger.returncode == 255 and "Permission denied" in stranger.stderr
    control.verify()


@contextmanager
def listening(control: Control, lease: str) -> Iterator[str]:
    """Have a lease at an address of this machine's, as a browser wants it."""
    with subprocess.Popen(
        [str(SUBLET), "lease", "connect", lease, "--listen", "0"], env=as_tenant(control),
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


def test_a_tenant_works_in_jupyter_through_sublet(four_nodes: Cluster, run_on: Start) -> None:
    need("jupyter-server", "jupyter-server")
    control = run_on(four_nodes)
    lease = control.lease(
        "sh", "-c", SERVE_JUPYTER, gpus=2, interactive=True, environment={"TOKEN": "of-mine"}
    )
    with listening(control, lease) as url, httpx.Client(base_url=url, timeout=180) as client:
        mine = {"Authorization": "token of-mine"}

        def answer(method: str, path: str, body: object = None) -> httpx.Response | None:
            try:
                return client.request(method, path, json=body, headers=mine)
            except httpx.TransportError:
                return None  # it is not up yet

        started = until(lambda: answer("GET", "/api/status"), seconds=240, what="Jupyter").json()
        assert started["kernels"] == 0
        stranger = httpx.get(f"{url}/api/contents", timeout=180)  # with no cookie of ours
        assert stranger.status_code == 403
        page = {"type": "file", "format": "text", "content": "print(6 * 7)\n"}
        saved = answer("PUT", "/api/contents/page.py", page)
        assert saved is not None and saved.status_code == 201, saved
        read = answer("GET", "/api/contents/page.py")
        assert read is not None and read.json()["content"] == "print(6 * 7)\n"
    control.api("DELETE", f"/v1/leases/{lease}", tenant=True)
    control.reach(lease, "ended")
    control.verify()
