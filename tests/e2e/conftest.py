import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.instance import CLIENTS, Instance


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """One Sublet for the tests of a module, with a model and slots to spare."""
    folder = Path(tempfile.mkdtemp(prefix="sublet-e2e-"))
    made = Instance(folder / "data")
    try:
        made.start()
        made.await_model()
        yield made
    finally:
        made.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Instance]]:
    """Make a Sublet of this test's own, with settings of its own."""
    made: list[Instance] = []

    def make(**options: object) -> Instance:
        made.append(Instance(folder / f"data{len(made)}", **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        if each.process is not None:
            each.clean_up()


@pytest.fixture(autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()
