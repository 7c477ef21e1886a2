"""What a reviewer would otherwise have to say twice."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sublet.core.migrations import available

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sublet"
LONGEST_LINES = 500
# A room with rules says what they are. The others hold one noun, or are glue.
RULES = 2

ROOMS = sorted(
    folder
    for folder in [*SOURCE.iterdir(), SOURCE / "models" / "replica"]
    if folder.is_dir()
    and folder.name not in {"app", "cli", "console", "core", "schema"}
    and len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) > RULES
)
QUERIES = sorted(SOURCE.rglob("queries.sql"))


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_with_rules_says_what_they_are(room: Path) -> None:
    page = room / "README.md"
    assert page.is_file(), f"{name(room)} has no README.md: its words and its invariants"
    assert len(page.read_text(encoding="utf-8").split()) > 50


def test_no_source_file_holds_two_nouns() -> None:
    lengths = {
        name(file): len(file.read_text(encoding="utf-8").splitlines())
        for file in SOURCE.rglob("*.py")
    }
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST_LINES} == {}


def test_migrations_are_numbered() -> None:
    # They are applied by set, in order: a number may be left out, and none is used twice.
    files = [file.name for file in (SOURCE / "schema").iterdir() if file.suffix == ".sql"]
    assert len(files) == len(available()), "a file's name is not 0001_like_this.sql"


@pytest.mark.parametrize("file", QUERIES, ids=name)
def test_every_named_query_is_used(file: Path) -> None:
    named = re.findall(r"^-- name: (\w+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    code = "".join(other.read_text(encoding="utf-8") for other in file.parent.rglob("*.py"))
    used = set(re.findall(r'QUERIES\["(\w+)"\]', code))
    elsewhere = "".join(
        other.read_text(encoding="utf-8")
        for other in SOURCE.rglob("*.py")
        if f"from sublet.{file.parent.name}.store import QUERIES" in other.read_text("utf-8")
    )
    used |= set(re.findall(r'QUERIES\["(\w+)"\]', elsewhere))
    assert len(named) == len(set(named))
    assert set(named) - used == set(), "nobody asks these"


def test_the_lock_holds_every_dependency_in_a_version_we_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["demo"],
        *project["dependency-groups"]["dev"],
    ]
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    locked = {
        canonicalize_name(found[1]): found[2]
        for found in re.finditer(r"^([\w.-]+)(?:\[[\w,-]+\])?==([\w.+!-]+)", text, re.MULTILINE)
    }
    for requirement in map(Requirement, asked):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert text.count("--hash=sha256:") >= len(locked)
