"""A server of the engine, and the adapters that it was started with."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sublet.core.errors import SubletError
from sublet.models.replica.llama import Llama


class Closed(SubletError):
    """The replica takes no requests: it still loads, or it drains."""

    code = "closed"
    retryable = True


@dataclass(slots=True, eq=False)
class Served:
    """A server of the engine, and the adapters that were loaded with it."""

    llama: Llama
    adapters: Mapping[str, int] = field(default_factory=dict)  # the number of each, by its id
    uses: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # once it is replaced and unused

    def lora(self, adapter: str | None) -> dict[str, Any]:
        """Return what to say to the engine of an adapter; none is in use unless it is named.

        Raises:
            Closed: this server does not have it.
        """
        if adapter is None:
            return {}
        if adapter not in self.adapters:
            raise Closed("this replica does not have the adapter yet")
        return {"lora": [{"id": self.adapters[adapter], "scale": 1.0}]}
