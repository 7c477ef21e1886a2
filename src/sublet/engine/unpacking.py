"""Making an image of what a container tool has, with the tools that this machine offers.

| what | by, the first that is there |
|---|---|
| `NAME.sqsh`, as Enroot and Pyxis keep images | unsquashfs |
| `NAME.sif` | apptainer, singularity |
| `NAME.tar`, `.tar.gz`, `.tar.xz`, `.tar.zst`, as `podman export` writes | tar |
| `docker://…`, from a registry | apptainer, singularity, enroot with unsquashfs, podman with tar |
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sublet.core.errors import Invalid, Refused
from sublet.engine.images import Images

_SQUASHED: Final = (".sqsh", ".squashfs", ".sqfs")
_TARRED: Final = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst")
_REGISTRY: Final = "docker://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Commands that put an image's root file system into a folder, in order."""

    commands: Sequence[Sequence[str]]
    after: Sequence[Sequence[str]] = field(default=())  # tidies up, whatever came of them

    @property
    def programs(self) -> list[str]:
        return list(dict.fromkeys(command[0] for command in self.commands))


def ways(source: str, root: Path, scratch: Path) -> list[Way]:
    """Return the ways to unpack `source` into `root`, the best first; none where its kind is unknown.

    Args:
        source: a file's path, or `docker://` and an image's name.
        root: does not exist yet; the tools make it.
        scratch: an empty folder for what lies in between.
    """
    if source.startswith(_REGISTRY):
        name = source.removeprefix(_REGISTRY)
        squashed, tar = str(scratch / "image.sqsh"), str(scratch / "image.tar")
        container = f"sublet-{scratch.name.strip('.')}"
        return [
            *_built(source, root),
            Way(commands=[["enroot", "import", "-o", squashed, source], _unsquash(squashed, root)]),
            Way(
                commands=[
                    ["podman", "create", "--name", container, name, "true"],
                    ["podman", "export", "-o", tar, container],
                    _untar(tar, root),
                ],
                after=[["podman", "rm", "-f", container]],
            ),
        ]
    if source.endswith(_SQUASHED):
        return [Way(commands=[_unsquash(source, root)])]
    if source.endswith(".sif"):
        return _built(source, root)
    if source.endswith(_TARRED):
        return [Way(commands=[_untar(source, root)])]
    return []


def _built(source: str, root: Path) -> list[Way]:
    tools = ("apptainer", "singularity")
    return [Way(commands=[[tool, "build", "--sandbox", str(root), source]]) for tool in tools]


def _unsquash(source: str, root: Path) -> list[str]:
    return ["unsquashfs", "-no-progress", "-no-xattrs", "-d", str(root), source]


def _untar(source: str, root: Path) -> list[str]:
    return ["tar", "-x", "--one-top-level=" + root.name, "-C", str(root.parent), "-f", source]


def add(
    images: Images,
    name: str,
    source: str,
    *,
    find: Callable[[str], str | None] = shutil.which,
) -> Path:
    """Unpack `source` as the image `name`; leases see all of it, or nothing.

    Raises:
        Invalid: the name cannot be one, or nobody knows what kind of thing the source is.
        Refused: there is an image of that name, no tool is there that can unpack this, the tool
            failed, or what came out lacks what the sandbox needs.
    """
    images.check_name(name)
    if (images.root / name).exists():
        raise Refused(
            f"there is an image {name} already: take another name, or remove {images.root / name}"
            " once no lease runs on it"
        )
    if not source.startswith(_REGISTRY):
        source = os.path.abspath(source)  # noqa: PTH100 -- not a word that looks like an option
        if not Path(source).is_file():
            raise Invalid(f"there is no file {source}; an image of a registry begins {_REGISTRY}")
    images.root.mkdir(parents=True, exist_ok=True)
    scratch = images.root / f".new-{name}"
    shutil.rmtree(scratch, ignore_errors=True)  # somebody was killed before
    scratch.mkdir()
    try:
        root = scratch / "root"
        _run(_choose(ways(source, root, scratch), source, find), find)
        images.check(name, root)
        root.chmod(0o755)
        root.rename(images.root / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return images.root / name


def _choose(known: Sequence[Way], source: str, find: Callable[[str], str | None]) -> Way:
    if not known:
        kinds = ", ".join([*_SQUASHED, ".sif", *_TARRED])
        raise Invalid(f"{source} is of no kind that is known: {kinds}, or {_REGISTRY}NAME")
    for way in known:
        if all(find(program) for program in way.programs):
            return way
    wanted = " or ".join(" and ".join(way.programs) for way in known)
    raise Refused(f"to unpack {source}, install {wanted} here")


def _run(way: Way, find: Callable[[str], str | None]) -> None:
    try:
        for program, *arguments in way.commands:
            ran = subprocess.run(
                [find(program) or program, *arguments],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                check=False,
            )  # fmt: skip
            if ran.returncode:
                lines = [line for line in (ran.stderr or ran.stdout).splitlines() if line.strip()]
                said = lines[-1].strip() if lines else f"exit status {ran.returncode}"
                raise Refused(f"{program} could not unpack it: {said[:500]}")
    finally:
        for program, *arguments in way.after:
            subprocess.run(
                [find(program) or program, *arguments],
                stdin=subprocess.DEVNULL, capture_output=True, check=False,
            )  # fmt: skip
