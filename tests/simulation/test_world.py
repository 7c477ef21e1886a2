"""The laws, in a world full of trouble. A seed that finds a bug is kept."""

import os
from collections.abc import Iterator

import pytest
from tests.core.databases import fresh
from tests.simulation.world import World

from sublet.core.db import Database

TICKS = 300
BUSY = [2, 3, 4]
FOUND = [
    1004,  # a crash between a firm lease's end and its credit lost the credit
]
MORE = range(10_000, 10_000 + int(os.environ.get("SUBLET_SIM_SEEDS", "0")))
ENDS = {"reclaimed", "expired", "credit_exhausted", "start_failed", "released"}
TROUBLE = {"crash", "unavailable", "unpaid", "refused", "internal_job"}


@pytest.fixture
def db(postgres_url: str, template: str) -> Iterator[Database]:
    with fresh(postgres_url, template) as database:
        yield database


def live(world: World) -> World:
    for _ in range(TICKS):
        world.tick()
    world.finish()
    return world


@pytest.mark.parametrize("seed", [*FOUND, *MORE])
def test_in_a_world_of_trouble_the_laws_hold(db: Database, seed: int) -> None:
    live(World(seed, db))


def test_worlds_in_which_everything_happens(postgres_url: str, template: str) -> None:
    happened: set[str] = set()
    for seed in BUSY:
        with fresh(postgres_url, template) as db:
            happened |= set(live(World(seed, db)).happened)
    assert not (ENDS | TROUBLE) - happened, "too little happened to prove anything"


@pytest.mark.parametrize("seed", [5])
def test_while_the_control_plane_is_well_nobody_needs_an_excuse(db: Database, seed: int) -> None:
    world = live(World(seed, db, trouble=False))
    assert world.excused_jobs() == set()
    assert world.longest_wait.total_seconds() > 0
    assert world.happened["reclaimed"] > 0
