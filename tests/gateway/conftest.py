import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from tests.gateway.stage import CLIENTS, Stage, raised


@pytest.fixture(scope="module")
def stage(postgres_url: str, template: str) -> Iterator[Stage]:
    """A running gateway that the tests of one file share; each brings its own tenant."""
    name = f"gateway_{uuid4().hex}"
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    before, _, query = postgres_url.partition("?")
    url = f"{before.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        with raised(url, folder) as stage:
            stage.start()
            yield stage
            assert stage.gateway is not None
            print(stage.gateway.log.read_text())
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_stage(database_url: str, folder: Path) -> Iterator[Stage]:
    """One of the test's own, to break; its gateway is not started yet."""
    with raised(database_url, folder) as stage:
        yield stage


@pytest.fixture(autouse=True)
def _close_clients() -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()
