"""Images made of what container tools keep: by real tools where Debian has them, else stand-ins.

The stand-ins take the words that the real ones take, refuse all others, and do the same work.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.engine.root_folder import unpack

from sublet.core.errors import Invalid, Refused
from sublet.engine.images import Images
from sublet.engine.unpacking import add

APPTAINER = """#!/bin/sh
[ "$1 $2" = "build --sandbox" ] && [ $# = 4 ] || exit 64
case "$4" in docker://toolbox|*.sif) cp -a "$TOOLBOX" "$3" ;; *) echo "no $4" >&2; exit 255 ;; esac
"""
ENROOT = """#!/bin/sh
[ "$1 $2 $4" = "import -o docker://toolbox" ] || { echo "[ERROR] no such image" >&2; exit 1; }
exec mksquashfs "$TOOLBOX" "$3" -quiet -no-progress
"""
PODMAN = """#!/bin/sh
case "$1" in
  create) [ "$2 $4 $5" = "--name toolbox true" ] && echo "$3" >> "$PODS" && echo 0123abcd ;;
  export) [ "$2" = -o ] && grep -qx "$4" "$PODS" && tar -c -C "$TOOLBOX" -f "$3" . ;;
  rm) [ "$2" = -f ] && sed -i "/^$3\\$/d" "$PODS" ;;
esac
"""


@pytest.fixture
def toolbox(folder: Path) -> Path:
    unpack(folder / "toolbox")
    return folder / "toolbox"


@pytest.fixture
def images(folder: Path) -> Images:
    return Images(root=folder / "images")


def need(program: str) -> None:
    if shutil.which(program) is None:
        lack = f"{program} is not installed: apt install squashfs-tools"
        (pytest.fail if os.environ.get("SUBLET_REQUIRE_SLURM") else pytest.skip)(lack)


def is_whole(folder: Path, toolbox: Path) -> bool:
    ran = subprocess.run(["diff", "-r", "--no-dereference", toolbox, folder], check=False)
    return ran.returncode == 0 and folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["sqsh", "tar", "tar.gz"])
def test_a_file_of_enroot_or_of_an_export_becomes_an_image(
    images: Images, toolbox: Path, folder: Path, kind: str
) -> None:
    source = folder / f"toolbox.{kind}"
    if kind == "sqsh":
        need("mksquashfs")
        make = ["mksquashfs", toolbox, source, "-quiet", "-no-progress"]
    else:
        make = ["tar", "-c", "-a", "-C", toolbox, "-f", source, "."]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    assert add(images, "toolbox", str(source)) == images.find("toolbox")
    assert is_whole(images.root / "toolbox", toolbox)
    assert [path.name for path in images.root.iterdir()] == ["toolbox"]


@pytest.mark.parametrize(
    ("tool", "text"), [("apptainer", APPTAINER), ("singularity", APPTAINER), ("enroot", ENROOT),
                       ("podman", PODMAN)],
)  # fmt: skip
def test_an_image_of_a_registry_comes_by_whichever_tool_is_there(
    images: Images, toolbox: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tool: str,
    text: str,
) -> None:  # fmt: skip
    if tool == "enroot":
        need("mksquashfs")
    monkeypatch.setenv("TOOLBOX", str(toolbox))
    monkeypatch.setenv("PODS", str(folder / "pods"))
    find = only(folder / "bin", {tool: text})
    add(images, "toolbox", "docker://toolbox", find=find)
    assert is_whole(images.root / "toolbox", toolbox)
    if tool == "podman":
        assert (folder / "pods").read_text() == "", "its container is left"
    with pytest.raises(Refused, match=f"{tool} could not unpack it"):
        add(images, "other", "docker://other", find=find)
    assert images.names() == ["toolbox"]


def only(folder: Path, programs: dict[str, str]) -> Callable[[str], str | None]:
    """Find these stand-ins and Debian's own tools, whatever else this machine has."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    own = {*programs, "tar", "unsquashfs"}
    path = f"{folder}:{os.environ['PATH']}"
    return lambda name: shutil.which(name, path=path) if name in own else None


def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    images: Images, toolbox: Path, folder: Path
) -> None:
    (folder / "a.zip").touch()
    (folder / "broken.tar").write_bytes(b"no tar")
    (toolbox / "usr" / "bin" / "setpriv").unlink()
    subprocess.run(["tar", "-c", "-C", toolbox, "-f", folder / "lacks.tar", "."], check=True)
    none = only(folder / "bin", {})
    for name, source, why in (
        ("a/b", "docker://x", "no name for an image"),
        ("-x", "docker://x", "no name for an image"),
        ("x", str(folder / "none.tar"), "there is no file"),
        ("x", str(folder / "a.zip"), "of no kind that is known"),
        ("x", str(folder / "broken.tar"), "tar could not unpack it"),
        ("x", str(folder / "lacks.tar"), "it lacks /usr/bin/setpriv"),
        ("x", "docker://x", "install apptainer or singularity or enroot and unsquashfs"),
    ):
        with pytest.raises((Invalid, Refused), match=why):
            add(images, name, source, find=none)
    assert images.names() == []
    assert not images.root.exists() or list(images.root.iterdir()) == []
    (images.root / "x").mkdir(parents=True)
    with pytest.raises(Refused, match="there is an image x already"):
        add(images, "x", str(folder / "lacks.tar"))
