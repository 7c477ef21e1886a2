"""Scenarios: what is shipped can be read, and what is wrong in a file is said with its place."""

from pathlib import Path

import pytest

from sublet.core.errors import Invalid, NotFound
from sublet.simulation.demand import make_world
from sublet.simulation.scenario import load_scenario, parse_scenario, shipped

ROOT = Path(__file__).parents[2]
SMALL = (Path(__file__).parent / "small.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*shipped(), str(ROOT / "benchmarks" / "fleet-220k.toml")])
def test_what_is_shipped_can_be_read(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.pools and scenario.arrivals and scenario.about


def test_the_fleet_of_the_benchmark_is_as_large_as_it_says() -> None:
    scenario = load_scenario(str(ROOT / "benchmarks" / "fleet-220k.toml"))
    assert sum(pool.gpus for pool in scenario.pools) == 220_000
    assert len(scenario.pools) == 200 and len(scenario.sites) == 5
    assert scenario.days == 30
    assert sum(one.per_day for one in scenario.arrivals) == 50_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("days = 2", "days = 0", "days must lie in 1 to 3660, not 0"),
        ("days = 2", "days = 1.5", "days must be a whole number"),
        ("gpus = 400", "gpus = 0", "number 1: gpus must lie in 1"),
        ("gpus = 400", "gpu = 400", "number 1: gpus is missing"),
        ("mean = 0.6", "men = 0.6", "unknown: men"),
        ('tier = "reserved"', 'tier = "gold"', "tier must be one of interruptible"),
        ("offer_usd_hour = 1.7", "offer_usd_hour = -1", "offer_usd_hour must lie in"),
        ("gpus = [1, 2, 4]", "gpus = [0]", "gpus must be a list of whole numbers above zero"),
        ("[[0, 0.5], [1, 1.0]]", "[[0.5, 0.5], [0.5, 1.0]]", "ramp must rise in the first"),
        ("[[0, 0.5], [1, 1.0]]", "[[0, 1.0], [0.5, 0.5]]", "a ramp does not fall"),
        ("[[0, 0.5], [1, 1.0]]", "[[0, 1.5]]", "a ramp ends at 1 at most"),
        ("[[0, 0.5], [1, 1.0]]", "[[0, 0.5], [0.5, 1.0]]", "not a whole number of days"),
        ("[[0, 0.5], [1, 1.0]]", "[[0, 0.5], [2, 1.0]]", "its last step starts at"),
        ("wallet_usd = 40_000", "wallet_usd = nan", "wallet_usd must lie in"),
        ('model = "a100"', 'model = "a100"\nsites = ["south"]', "names 'south'"),
        ("mean = 0.6", 'file = "none.csv"', "there is no file"),
        ("[[site]]", "[[sit]]", "at least one [[site]]"),
        ("days = 2", "days =", "not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(Invalid) as error:
        parse_scenario(SMALL.replace(old, new, 1), folder=Path("nowhere"))
    assert message in str(error.value)


def test_a_scenario_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"no file 'nope\.toml'"):
        load_scenario("nope.toml")


def test_a_curve_from_a_file_is_scaled_to_the_pool(folder: Path) -> None:
    rows = "".join(f"2026-01-01T{hour:02}:00:00,100,{40 + hour}\n" for hour in range(24))
    (folder / "pool.csv").write_text("time,gpus_total,gpus_running\n" + rows, encoding="utf-8")
    text = SMALL.replace(
        "{ mean = 0.6, largest = 0.06, hours = 8, drift = 0.02 }", '{ file = "pool.csv" }'
    )
    world = make_world(parse_scenario(text, folder=folder), 1)
    assert world.demand.min() == 160 and world.demand.max() == 63 * 4
    assert len(set(world.demand[0, :12].tolist())) <= 2
