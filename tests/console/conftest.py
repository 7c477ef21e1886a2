from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.console.house import House, furnished


@pytest.fixture(scope="module")
def house(
    postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = Path(tmp_path_factory.mktemp("console"))
    with furnished(postgres_url, template, folder) as made:
        yield made
