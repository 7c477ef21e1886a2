"""`sublet simulate`: its document ends as programs were promised, and it compares rules."""

import json
from pathlib import Path

import pytest
from tests.cli.fake_api import Sublet

LAST = ["violations", "shortage_share", "revenue_share", "evictions", "seconds", "rss_mb"]
TINY = """
name = "Tiny"
days = 1
warmup_days = 3

[[site]]
name = "north"

[[pool]]
model = "l4"
gpus = 64

[[arrivals]]
tier = "interruptible"
per_day = 60
hours = 2
offer_usd_hour = 0.9
"""


@pytest.fixture
def tiny(folder: Path) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def test_the_document_ends_as_promised_and_the_history_is_the_same_again(
    bare: Sublet, tiny: Path, folder: Path
) -> None:
    first = bare("simulate", str(tiny), "--json", "--history", str(folder / "a.csv"))
    second = bare("simulate", str(tiny), "--json", "--history", str(folder / "b.csv"))
    assert first.code == 0, first.err
    document, again = json.loads(first.out), json.loads(second.out)
    assert list(document)[-6:] == LAST
    assert document["violations"] == 0 and document["evictions"] >= 0
    assert 0 < document["revenue_share"] <= 1 and document["rss_mb"] > 10
    assert document["history"] == again["history"]
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()


def test_people_get_a_page_with_plots(bare: Sublet, tiny: Path) -> None:
    result = bare("simulate", str(tiny), "--rules", "slurm")
    assert result.code == 0, result.err
    for words in ("GPU-hours", "clairvoyant", "reclaims", "leases, of what internal jobs leave"):
        assert words in result.out
    assert "laws broken in 288 checks: 0" in result.out


def test_rules_are_compared_on_the_same_arrivals(bare: Sublet, tiny: Path) -> None:
    result = bare(
        "simulate", str(tiny), "--rules", "slurm", "--rules", "blocks", "--seeds", "2", "--json"
    )
    document = json.loads(result.out)
    assert [run["rules"] for run in document["runs"]] == ["slurm", "blocks"] * 2
    rows = document["comparison"]
    assert rows[-1]["name"] == "blocks" and rows[-1]["shortage_share"] > 0.001
    for row in rows:
        assert row["low"] <= row["revenue_share"] <= row["high"]
    clairvoyants = [run["clairvoyant_usd"] for run in document["runs"]]
    assert clairvoyants[0] == clairvoyants[1] != clairvoyants[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rules", "yarn"], "'yarn' is none of sublet, slurm"),
        (["--pricing", "free"], "'free' is none of bid, fixed"),
        (["--seeds", "2", "--history", "x.csv"], "--history is of one run"),
        (["--seed", "-1"], "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_said(bare: Sublet, tiny: Path, options: list[str], message: str) -> None:
    result = bare("simulate", str(tiny), *options)
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


def test_without_a_scenario_those_that_are_shipped_are_listed(bare: Sublet) -> None:
    result = bare("simulate", "--json")
    assert result.code == 0, result.err
    assert isinstance(json.loads(result.out)["items"], list)
