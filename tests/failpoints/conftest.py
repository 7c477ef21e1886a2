from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.failpoints.plane import Plane, Zygote, plane


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def control(zygote: Zygote, database_url: str, folder: Path) -> Iterator[Plane]:
    with plane(zygote, database_url, folder) as made:
        yield made
