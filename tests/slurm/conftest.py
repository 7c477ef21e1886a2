from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster, cluster
from tests.slurm.control import Control


@pytest.fixture(scope="session")
def four_nodes() -> Iterator[Cluster]:
    """Four nodes with eight GPUs each, under two switches; leases have a notice of four seconds."""
    with cluster("--nodes", "4", "--gpus", "8", "--switches", "2", "--notice", "4") as started:
        yield started


@pytest.fixture
def run_on(folder: Path, database_url: str) -> Iterator[Callable[[Cluster], Control]]:
    """Start `sublet control` on a cluster; both are empty again after the test."""
    made: list[tuple[Cluster, Control]] = []

    def start(on: Cluster, *, model: bool = False, **settings: str) -> Control:
        control = Control(on, folder, database_url, **settings)
        control.model = model
        made.append((on, control))
        return control.start()

    yield start
    for on, control in made:
        control.stop()
        on.clear()
