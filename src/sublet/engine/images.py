"""Container images, unpacked: each a folder with the root file system that a lease runs on.

Any container tool makes one of any image (`apptainer build --sandbox`, `enroot create`,
`podman export`), and our own sandbox runs it, as confined as on the machine's own system: with no
daemon, no runtime on nodes, and nothing downloaded while a lease starts.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sublet.core.errors import Invalid, Refused

# What the sandbox itself runs in there, before the tenant's command; all large distributions'
# images have it.
NEEDED: Final = ("bin/sh", "bin/cp", "bin/chown", "usr/bin/setpriv", "usr/bin/prlimit")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHOWN: Final = 20
# Ours, or the sandbox's own, whatever the image has there.
_NOT_ITS_OWN: Final = frozenset({"dev", "proc", "run", "sys", "tmp", "work", "etc"})
_ETC_OURS: Final = frozenset({"passwd", "group", "hosts", "nsswitch.conf", "resolv.conf"})
# What can unpack one.
TOOLS: Final = ("apptainer", "singularity", "enroot", "podman", "unsquashfs", "tar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The operator's folder of images, which nodes see under the same path."""

    root: Path

    def names(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if _NAME.fullmatch(p.name) and p.is_dir())

    def find(self, name: str) -> Path:
        """Return an image's folder.

        Raises:
            Refused: there is none of that name, or it lacks what the sandbox needs.
        """
        folder = self.root / name
        if _NAME.fullmatch(name) is None or not folder.is_dir() or folder.is_symlink():
            names = self.names()
            there = ", ".join(names[:_SHOWN]) + (" and more" if len(names) > _SHOWN else "")
            raise Refused(f"there is no image {name[:128]!r}; there are: {there or 'none yet'}")
        self.check(name, folder)
        return folder

    def check_name(self, name: str) -> None:
        """Raises Invalid: no image can be called that."""
        if _NAME.fullmatch(name) is None:
            raise Invalid(
                f"{name[:128]!r} is no name for an image: letters, digits and . _ - after a letter"
                " or digit, 128 at most"
            )

    def check(self, name: str, folder: Path) -> None:
        """Raises Refused: what lies in `folder` lacks what the sandbox needs."""
        lacking = [f"/{path}" for path in NEEDED if not _inside(folder, path)]
        if lacking:
            raise Refused(f"image {name} cannot be run: it lacks {', '.join(lacking)}")


def refusal(images: Images | None, *, sandbox: bool) -> str | None:
    """Say why no lease can run on an image here; None: it can."""
    if images is None:
        return "no images are kept here; the operator sets SUBLET_IMAGES to the folder of them"
    if not sandbox:
        return "images are run in the sandbox, and there is none here"
    return None


def _inside(folder: Path, path: str) -> bool:
    """Say whether there is such a file in an image, whose links mean its own root."""
    at = folder
    parts = path.split("/")
    for _ in range(40):
        if not parts:
            return at.is_file()
        at = at / parts.pop(0)
        if at.is_symlink():
            target = str(at.readlink())
            at = folder if target.startswith("/") else at.parent
            parts = [*target.strip("/").split("/"), *parts]
    return False


def binds(folder: Path, *, network: bool) -> list[str]:
    """Return bwrap's options that make an image the system: read-only, but for what is ours."""
    options: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name not in _NOT_ITS_OWN:
            options += _bind(entry, f"/{entry.name}")
    etc = folder / "etc"
    if etc.is_dir():
        ours = _ETC_OURS if network else _ETC_OURS - {"resolv.conf"}
        for entry in sorted(os.scandir(etc), key=lambda entry: entry.name):
            if entry.name not in ours:
                options += _bind(entry, f"/etc/{entry.name}")
    return options


def _bind(entry: os.DirEntry[str], at: str) -> list[str]:
    if entry.is_symlink():
        return ["--symlink", str(Path(entry.path).readlink()), at]
    return ["--ro-bind", entry.path, at]


def tools() -> list[str]:
    """Return which programs are there that can unpack an image."""
    return [name for name in TOOLS if shutil.which(name) is not None]
