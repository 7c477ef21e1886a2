"""The keys that `sublet up` prints, kept so that the next start prints the same."""

import json
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from sublet.core.errors import Misconfigured
from sublet.core.files import write_whole
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
    write_whole(path, json.dumps(asdict(made)).encode())
    return made
