"""Secrets that must be read again, at rest: sealed with a key that lies in a file of its own.

What is sealed is AES-256-GCM by the library `cryptography`, bound to the name of what it belongs
to, so that one row's secret cannot be put into another's. A copy of the database opens nothing.

    byte 0     1: this form
    1…4        fingerprint of the key, to say that it is another one rather than "damaged"
    5…16       nonce
    17…        ciphertext and tag
"""

import base64
import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sublet.core.errors import Misconfigured

_FORM: Final = b"\x01"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 1 + 4 + _NONCE_BYTES


class Vault:
    """Seals and opens by the key in one file, which is read when it is first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key: bytes | None = None

    def prepare(self) -> None:
        """Make the key if there is none; of several processes that try, one does.

        Raises:
            Misconfigured: there is one that cannot be used.
        """
        if not self._path.exists():
            made = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
            made.unlink(missing_ok=True)
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(made, self._path)
            except FileExistsError:
                pass  # another process was first, and its key is whole: links are made of whole files
            finally:
                made.unlink()
        self._read()

    def seal(self, secret: str, *, bound_to: str) -> bytes:
        """Raises Misconfigured: the key is not there, or cannot be used."""
        key, nonce = self._read(), secrets.token_bytes(_NONCE_BYTES)
        hidden = AESGCM(key).encrypt(nonce, secret.encode(), bound_to.encode())
        return _FORM + _fingerprint(key) + nonce + hidden

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        """Return the secret that was sealed for `bound_to`.

        Raises:
            Misconfigured: the key is not there, is another one, or what was sealed was changed.
        """
        key = self._read()
        if sealed[:1] != _FORM:
            raise Misconfigured("what is stored was sealed by a newer Sublet: install that version")
        if sealed[1:5] != _fingerprint(key):
            raise Misconfigured(
                f"{self._path} is not the key with which this was sealed: put back the one that the"
                " control plane uses"
            )
        nonce, hidden = sealed[5:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, hidden, bound_to.encode()).decode()
        except (InvalidTag, ValueError):
            raise Misconfigured("what is stored was changed after it was sealed") from None

    def _read(self) -> bytes:
        if self._key is None:
            try:
                with self._path.open("rb") as file:
                    mode = os.fstat(file.fileno()).st_mode
                    key = base64.b64decode(file.read(), validate=False)
            except (OSError, ValueError) as error:
                raise Misconfigured(
                    f"cannot read the key {self._path}: {getattr(error, 'strerror', None) or error};"
                    " copy it from the control plane's data folder"
                ) from None
            if mode & 0o077:
                raise Misconfigured(f"{self._path} can be read by others: chmod 600 {self._path}")
            if len(key) != _KEY_BYTES:
                raise Misconfigured(f"{self._path} is damaged; restore it from a copy")
            self._key = key
        return self._key


def _fingerprint(key: bytes) -> bytes:
    return hashlib.sha256(b"sublet vault" + key).digest()[:4]
