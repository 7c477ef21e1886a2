"""The keys that `sublet up` prints, kept so that the next start prints the same."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from sublet.core.errors import Misconfigured
from sublet.tenants.tenant import new_key

# In the data folder: the key that opens the secrets of access keys. See `core/vault.py`.
VAULT: Final = "access-keys.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    operator_key: str
    tenant_key: str  # the demo tenant's
    signing_key: str  # of notice addresses


def load_or_make(path: Path) -> Secrets:
    """Read the secrets, or make and keep them, readable by us alone.

    Raises:
        Misconfigured: the file is there and is not what we wrote.
    """
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return Secrets(**{field.name: str(found[field.name]) for field in fields(Secrets)})
        except (ValueError, KeyError, TypeError) as error:
            raise Misconfigured(f"{path} is damaged ({error!r}); restore it from a copy") from error
    made = Secrets(operator_key=new_key(), tenant_key=new_key(), signing_key=secrets.token_hex(32))
    write_private(path, json.dumps(asdict(made)))
    return made


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by us alone from its first byte on."""
    unfinished = path.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
