from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.stage import Stage, raised


@pytest.fixture
def own_stage(database_url: str, folder: Path) -> Iterator[Stage]:
    """A database and a replica; whoever asks starts the gateways, and ends them."""
    with raised(database_url, folder) as stage:
        yield stage
