"""A small image of what is on this machine: a shell, a few programs, and the libraries they need."""

import re
import shutil
import subprocess
from pathlib import Path

_PROGRAMS = ("sh", "cp", "chown", "cat", "ls", "id", "setpriv", "prlimit", "sleep", "env")


def unpack(folder: Path) -> None:
    """Make an image, as a container tool does that unpacks one."""
    (folder / "usr" / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    (folder / "bin").symlink_to("usr/bin")
    for name in _PROGRAMS:
        found = shutil.which(name, path="/usr/bin:/bin")
        assert found is not None, name
        real = Path(found).resolve()
        shutil.copy2(real, folder / "usr" / "bin" / name)
        needed = subprocess.run(["ldd", real], capture_output=True, text=True, check=False).stdout
        for library in re.findall(r"(/\S+) \(0x", needed):
            there = folder / library.lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            if not there.exists():
                shutil.copy2(Path(library).resolve(), there)
    (folder / "etc" / "os-release").write_text("NAME=an image of a test\n", encoding="utf-8")
    (folder / "etc" / "hostname").symlink_to("os-release")
    (folder / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n", encoding="utf-8")
