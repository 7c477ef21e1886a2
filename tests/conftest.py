"""One PostgreSQL for a whole test run; a fresh database for whoever asks."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from tests.core.databases import fresh, undone

from sublet.core.clock import SystemClock
from sublet.core.db import Database, Tx
from sublet.core.migrations import migrate
from sublet.core.postgres import Postgres

# Workers share the processors; threads of the linear algebra would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# CI looks at the same examples every time; everybody else looks at new ones. How long one takes
# on a busy machine says nothing.
_SLOW = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("new", deadline=None, suppress_health_check=_SLOW)
hypothesis.settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=_SLOW
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "new")

# What takes longer than a look away from the screen: not part of `make check`.
_REAL = {
    "engine", "contract", "failpoints", "faults", "gateway", "models", "races", "simulation",
    "slurm", "console",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in _REAL:
            item.add_marker(pytest.mark.real)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder of this test's own.

    Not `tmp_path`: other pytest runs close its parents to the server's user again.
    """
    path = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server of this worker's own, or the one in TEST_DATABASE_URL."""
    if (url := os.environ.get("TEST_DATABASE_URL")) is not None:
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="sublet-test-"))
    server = Postgres(folder / "postgres", settings={"max_connections": "200"})
    try:
        server.start()
        yield server.url
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """A migrated database that the others are copied from; TEST_DATABASE_TEMPLATE, if it is set."""
    if (ready := os.environ.get("TEST_DATABASE_TEMPLATE")) is not None:
        return ready
    name = f"template_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    with Database(_named(postgres_url, name)) as db:
        migrate(db, clock=SystemClock())
    return name


@pytest.fixture
def database_url(postgres_url: str, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        yield _named(postgres_url, name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url) as database:
        yield database


@pytest.fixture(scope="module")
def shared(postgres_url: str, template: str) -> Iterator[Database]:
    """A migrated database for the tests of one file, who each undo what they did: see `tx`."""
    with fresh(postgres_url, template) as db:
        yield db


@pytest.fixture
def tx(shared: Database) -> Iterator[Tx]:
    with undone(shared) as tx:
        yield tx


def _named(url: str, name: str) -> str:
    before, _, query = url.partition("?")
    return f"{before.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
