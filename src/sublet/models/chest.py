"""Files at rest, sealed: each cut into parts, each part by AES-256-GCM with its artefact's key.

    <root>/<artefact>/<file>/<part>      nonce (12 bytes) | ciphertext and tag

A part is bound to its place, so that parts cannot be swapped, and how many there are is in the
database. All but the last of a file have `PART_BYTES`, so any byte is found, and read, without
what comes before it. The plain text is never on the disk: parts are sealed as they come.
"""

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sublet.core.errors import Misconfigured, Unavailable
from sublet.core.files import write_whole

PART_BYTES: Final = 8 << 20  # also the most that the API takes in one call
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def count_parts(size: int) -> int:
    return -(-size // PART_BYTES)


def part_bytes(size: int, part: int) -> int:
    """Return how long a part of a file of `size` bytes is."""
    return min(PART_BYTES, size - part * PART_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    artefact: UUID
    file: int
    part: int

    @property
    def bound_to(self) -> bytes:
        return f"artefact/{self.artefact}/{self.file}/{self.part}".encode()


class Chest:
    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, place: Place, plain: bytes, *, key: bytes) -> None:
        """Seal a part and bring it to the disk, in the place of what was there.

        Raises:
            Unavailable: the disk does not take it.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + AESGCM(key).encrypt(nonce, plain, place.bound_to)
        path = self._path(place)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, sealed)
        except OSError as error:
            raise Unavailable(f"the store of artefacts takes nothing: {error.strerror}") from error

    def get(self, place: Place, *, key: bytes) -> bytes:
        """Return a part.

        Raises:
            Unavailable: it is not there, or cannot be read.
            Misconfigured: it is not what was put there.
        """
        try:
            sealed = self._path(place).read_bytes()
        except OSError as error:
            raise Unavailable(f"part {place.part} is not in the store: {error.strerror}") from error
        try:
            return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.bound_to)
        except (InvalidTag, ValueError):
            raise Misconfigured(
                f"part {place.part} of artefact {place.artefact} was changed after it was sealed"
            ) from None

    def remove(self, artefact: UUID) -> None:
        """Remove all of it; what is not there is removed already.

        Raises:
            Unavailable: the disk does not let it go.
        """
        try:
            shutil.rmtree(self.root / str(artefact))
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"artefact {artefact} cannot be removed: {error.strerror}") from error

    def kept(self) -> list[UUID]:
        """Return the artefacts of which there is a folder."""
        try:
            names = [entry.name for entry in self.root.iterdir()]
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            try:
                found.append(UUID(name))
            except ValueError:
                continue  # not ours
        return found

    def free_bytes(self) -> int:
        """Return how much room the disk under the store has."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return shutil.disk_usage(self.root).free

    def open(self, artefact: UUID, file: int, size: int, *, key: bytes) -> "SealedFile":
        return SealedFile(self, artefact, file, size, key)

    def _path(self, place: Place) -> Path:
        return self.root / str(place.artefact) / str(place.file) / f"{place.part:06}"


class SealedFile:
    """A whole file, read from its parts: the last part read is kept, as headers are read in order."""

    def __init__(self, chest: Chest, artefact: UUID, file: int, size: int, key: bytes) -> None:
        self.size = size
        self._chest = chest
        self._artefact = artefact
        self._file = file
        self._key = key
        self._held: tuple[int, bytes] | None = None

    def read(self, offset: int, count: int) -> bytes:
        """As `Source.read`. Raises Unavailable, Misconfigured: as `Chest.get`."""
        end = min(self.size, offset + count)
        pieces = []
        while offset < end:
            part, start = divmod(offset, PART_BYTES)
            piece = self._part(part)[start : start + end - offset]
            if not piece:
                raise Unavailable(
                    f"part {part} of artefact {self._artefact} is shorter than it was"
                )
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def parts(self) -> Iterator[bytes]:
        """Return the file, a part at a time."""
        for part in range(count_parts(self.size)):
            yield self._part(part)

    def sha256(self) -> bytes:
        """Return the digest of the whole."""
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part)
        return digest.digest()

    def _part(self, part: int) -> bytes:
        if self._held is None or self._held[0] != part:
            place = Place(artefact=self._artefact, file=self._file, part=part)
            self._held = part, self._chest.get(place, key=self._key)
        return self._held[1]
