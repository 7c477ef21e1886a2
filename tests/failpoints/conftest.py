from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.failpoints.plane import Plane, Zygote, plane

from sublet.leases import blocks
from sublet.metering import lease_meter


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Processes in which a minute of a lease is three seconds; so it is to our auditor."""
    made = Zygote()
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, lease_meter):
            patch.setattr(module, "BLOCK_SECONDS", 3)
        yield made
    made.close()


@pytest.fixture
def control(zygote: Zygote, database_url: str, folder: Path) -> Iterator[Plane]:
    with plane(zygote, database_url, folder) as made:
        yield made
