"""What the API's routes work with."""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from sublet.app.secrets import VAULT
from sublet.config import Config
from sublet.core.clock import Clock
from sublet.core.db import Database
from sublet.core.errors import NotFound
from sublet.core.vault import Vault
from sublet.engine.images import Images
from sublet.engine.port import Engine, InternalQueue
from sublet.leases.waits import InternalWaits
from sublet.models.catalogue import Shelf
from sublet.models.chest import Chest
from sublet.models.service import Replicas

if TYPE_CHECKING:
    from sublet.app.admissions import Admissions


def shelf_of(config: Config, vault: Vault, *, artefacts: Path) -> Shelf:
    return Shelf(
        chest=Chest(artefacts), vault=vault, most_bytes=config.model_bytes, recipes=config.recipes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    config: Config
    db: Database
    engine: Engine
    internal_queue: InternalQueue | None  # None where the cluster's own queue takes jobs
    clock: Clock
    admissions: "Admissions"
    replicas: Replicas | None
    artefacts: Path  # the folder of sealed weights
    signing_key: str
    waits: InternalWaits = field(default_factory=InternalWaits)  # of internal jobs, for leases
    refuses_commands: str | None  # why no tenant's command may run here, or None
    images: Images | None = None  # that leases may run on
    confines: bool = True  # tenants' commands run in the sandbox
    wake: Callable[[], None]  # do the next pass of the loop now

    @property
    def shelf(self) -> Shelf:
        """Where what tenants bring is kept."""
        return shelf_of(self.config, self.vault, artefacts=self.artefacts)

    @property
    def vault(self) -> Vault:
        """What seals the secrets of access keys."""
        return Vault(self.config.data / VAULT)

    def notice_url(self, lease_id: UUID) -> str:
        """Return where a workload can read its notice without a key."""
        return f"{self.config.api_url}/v1/notices/{lease_id}.{self._signature(lease_id)}"

    def lease_of_notice(self, token: str) -> UUID:
        """Raises NotFound: the address was not made by us."""
        return self._signed(token, "notice", b"")

    def tunnel_url(self, lease_id: UUID) -> str:
        """Return where the node of an interactive lease dials."""
        signature = self._signature(lease_id, b"tunnel")
        return f"{self.config.api_url}/v1/tunnels/{lease_id}.{signature}"

    def lease_of_tunnel(self, token: str) -> UUID:
        """Raises NotFound: the address was not made by us."""
        return self._signed(token, "tunnel", b"tunnel")

    def _signed(self, token: str, what: str, purpose: bytes) -> UUID:
        text, _, signature = token.partition(".")
        try:
            lease_id = UUID(text)
        except ValueError:
            raise NotFound(f"there is no such {what}") from None
        expected = self._signature(lease_id, purpose)
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), expected.encode()):
            raise NotFound(f"there is no such {what}")
        return lease_id

    def _signature(self, lease_id: UUID, purpose: bytes = b"") -> str:
        message = lease_id.bytes + purpose
        return hmac.new(self.signing_key.encode(), message, hashlib.sha256).hexdigest()[:32]
