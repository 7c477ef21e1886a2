"""`sublet backtest`: its document is a contract, and it says what is wrong with a file."""

import json
from pathlib import Path

import pytest
from tests.cli.fake_api import Sublet
from tests.planner.pools import wandering

KEYS = {
    "name",
    "shortage_share",
    "interruptible_share",
    "evictions_per_gpu_day",
    "revenue_share",
    "firm",
}
FIRM = {"sold_share", "kept_share", "clairvoyant_share", "broken_share", "oversold_share"}


@pytest.fixture
def curve(folder: Path) -> Path:
    """Twelve days by the hour, in a file that counts hours."""
    pool = wandering(1, days=12)
    path = folder / "pool.csv"
    rows = (
        f"{hour},{have:.0f},{use:.0f}"
        for hour, (have, use) in enumerate(zip(pool.total, pool.running, strict=True))
    )
    path.write_text("hour,have,use\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def options(*more: str) -> list[str]:
    return ["--time", "hour", "--total", "have", "--running", "use", *more]


def test_the_document_is_what_programs_were_promised(bare: Sublet, curve: Path) -> None:
    result = bare(
        "backtest", str(curve),
        *options("--policy", "max-6h", "--policy", "default", "--policy", "never-preempt"),
        *("--from", "192", "--to", "1970-01-12", "--skip-day", "1970-01-03"),
        *("--train-until", "180", "--notice", "10m", "--confidence", "0.95", "--json"),
    )  # fmt: skip
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert set(document) == {"policies", "seconds"}
    for policy in document["policies"]:
        assert set(policy) == KEYS
        assert set(policy["firm"]) == {"1h", "4h", "24h"}
        for firm in policy["firm"].values():
            assert set(firm) == FIRM
            assert 0 <= firm["kept_share"] <= firm["clairvoyant_share"] <= 1
            assert firm["kept_share"] <= firm["sold_share"]
            assert 0 <= firm["broken_share"] <= 1 and 0 <= firm["oversold_share"] <= 1
    by_name = {policy["name"]: policy for policy in document["policies"]}
    assert set(by_name) == {"max-6h", "default", "never-preempt"}
    # Who makes internal jobs wait comes last, whatever it earned.
    assert document["policies"][-1]["name"] == "never-preempt"
    assert by_name["never-preempt"]["shortage_share"] > 0.001
    assert by_name["default"]["shortage_share"] == 0


def test_people_get_tables(bare: Sublet, curve: Path) -> None:
    result = bare("backtest", str(curve), *options("--policy", "none", "--policy", "last"))
    assert result.code == 0
    for words in ("portfolio", "firm 1 h", "firm 24 h", "broken of sold", "none", "last"):
        assert words in result.out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--policy", "magic"), "no policy is called 'magic'; there are default, none"),
        (("--confidence", "1"), "the confidence must lie between 0 and 1"),
        (("--from", "someday"), "'someday' is not a time such as"),
        (("--from", "2030-01-01"), "nothing is left to score"),
        (("--train-until", "300", "--from", "200"), "the training must end before"),
        (("--prices", "1,2"), "'1,2' is not four prices such as 1,0.85,0.7,0.5"),
        (("--prices", "1,1,1,-1"), "prices must not be negative"),
        (("--notice", "soon"), "'soon' is not a duration"),
        (("--running", "used"), "has no column 'used'; it has hour, have, use"),
    ],
)
def test_it_says_what_is_wrong(bare: Sublet, curve: Path, more: tuple[str, ...], why: str) -> None:
    result = bare("backtest", str(curve), *options(*more))
    assert result.code != 0 and result.out == ""
    assert why in result.err and result.err.count("\n") == 1


def test_lines_that_cannot_be_used_are_named_or_refused(bare: Sublet, curve: Path) -> None:
    with curve.open("a", encoding="utf-8") as file:
        file.write("288,200\n")
    lenient = bare("backtest", str(curve), *options("--policy", "none"))
    assert lenient.code == 0 and "skipped line 290: 2 fields" in lenient.err
    strict = bare("backtest", str(curve), *options("--policy", "none", "--strict"))
    assert strict.code != 0 and "line 290: 2 fields" in strict.err
