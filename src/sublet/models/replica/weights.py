"""Weights for an engine to read.

Those of a package are assembled once, verified once, then trusted by a mark. Those that somebody
brought are sealed: they are opened into the replica's own folder, in a file that has no name any
more before its first byte is written, so that nothing of it outlives its process.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec

from sublet.core.errors import Misconfigured
from sublet.models.chest import Chest, SealedFile
from sublet.models.replica.recipe import Adapter, Recipe, SealedWeights, Weights


class Where(msgspec.Struct, frozen=True, kw_only=True):
    assembled: str  # folder of weights from packages
    artefacts: str | None  # folder of the chest
    key: str | None  # in base64, of what is sealed


@contextmanager
def at_hand(recipe: Recipe, where: Where) -> Iterator[Path]:
    """Lend the one file, or the folder, that an engine reads a model from, while it loads.

    Raises:
        Misconfigured: the weights are not there, or not what the recipe names.
        Unavailable: the chest cannot be read.
    """
    if recipe.weights is not None:
        yield prepare(recipe.weights, Path(where.assembled))
        return
    if recipe.sealed is None or where.artefacts is None or where.key is None:
        raise Misconfigured(f"nobody said where the weights of {recipe.name} are, or their key")
    files = _sealed(recipe.sealed, Path(where.artefacts), base64.b64decode(where.key))
    if len(files) == 1:
        ((path, (file, sha256)),) = files.items()
        with _nameless() as (opened, there):
            _pour(file, opened, sha256, name=path)
            yield there
        return
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".weights-") as folder:
        for path, (file, sha256) in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as opened:
                _pour(file, opened, sha256, name=path)
        yield Path(folder)


@contextmanager
def adapter_at_hand(adapter: Adapter, artefacts: Path) -> Iterator[Path]:
    """Lend the file of an adapter while an engine loads it; raises as `at_hand`."""
    file, key = adapter.file, base64.b64decode(adapter.key)
    sealed = Chest(artefacts).open(adapter.id, adapter.number, file.size, key=key)
    with _nameless() as (opened, there):
        _pour(sealed, opened, file.sha256, name=file.path)
        yield there


def _sealed(weights: SealedWeights, chest: Path, key: bytes) -> dict[str, tuple[SealedFile, str]]:
    """Return {path: (its file, its digest)}."""
    return {
        file.path: (Chest(chest).open(weights.artefact, number, file.size, key=key), file.sha256)
        for number, file in enumerate(weights.files)
    }


@contextmanager
def _nameless() -> Iterator[tuple[BinaryIO, Path]]:
    """Lend an open file in this process's folder, and a path that leads to it while it is open."""
    handle, name = tempfile.mkstemp(dir=Path.cwd(), prefix=".weights-")
    path, by_number = Path(name), Path(f"/proc/self/fd/{handle}")
    with os.fdopen(handle, "wb") as opened:
        if by_number.exists():
            path.unlink()
            yield opened, by_number
            return
        try:
            yield opened, path
        finally:
            path.unlink()


def _pour(file: SealedFile, opened: BinaryIO, sha256: str, *, name: str) -> None:
    digest = hashlib.sha256()
    for part in file.parts():
        digest.update(part)
        opened.write(part)
    opened.flush()
    if digest.hexdigest() != sha256:
        raise Misconfigured(f"{name} is not what it was when it was checked")


def prepare(weights: Weights, folder: Path) -> Path:
    """Return the verified weight file in `folder`, assembling it if need be.

    Hashing takes seconds, so it happens once: a mark beside the file holds the digest
    with the size and time of the file that had it, and a warm start compares those.

    Raises:
        Misconfigured: what the package assembled is not what the recipe names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weights.file
    mark = folder / f"{weights.file}.verified"
    if _is_marked(path, mark, weights.sha256):
        return path
    if not (path.is_file() and _sha256(path) == weights.sha256):
        _assemble(weights, path)
    _write(mark, _mark_of(path, weights.sha256))
    return path


def _is_marked(path: Path, mark: Path, sha256: str) -> bool:
    try:
        return mark.read_text(encoding="ascii") == _mark_of(path, sha256)
    except FileNotFoundError:
        return False


def _mark_of(path: Path, sha256: str) -> str:
    stat = path.stat()
    return f"{sha256} {stat.st_size} {stat.st_mtime_ns}\n"


def _assemble(weights: Weights, path: Path) -> None:
    # Aside and then moved: two replicas may start at once, and one may be killed half way.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".assembling-") as aside:
        part = Path(aside) / weights.file
        import_module(weights.package).assemble(part)
        if _sha256(part) != weights.sha256:
            raise Misconfigured(f"{weights.package} does not hold the weights of the recipe")
        part.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".mark-")
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
    Path(name).replace(path)
