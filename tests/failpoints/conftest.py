from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.failpoints.plane import Plane, Zygote, plane

from sublet.leases import blocks, contract
from sublet.metering import lease_meter


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    """Processes in which a minute, and a contract's day, is three seconds; to our auditor, too."""
    made = Zygote()
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, lease_meter):
            patch.setattr(module, "BLOCK_SECONDS", 3)
        patch.setattr(contract, "DAY_SECONDS", 3)
        yield made
    made.close()


@pytest.fixture
def control(zygote: Zygote, database_url: str, folder: Path) -> Iterator[Plane]:
    with plane(zygote, database_url, folder) as made:
        yield made
