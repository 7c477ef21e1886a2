"""`sublet index`: from files and own trades, with its chart and its alarm."""

import json
from datetime import date, timedelta
from pathlib import Path

import pytest
from tests.cli.fake_api import FakeApi, Sublet

START = date(2026, 3, 1)


@pytest.fixture
def quotes(folder: Path) -> Path:
    path = folder / "quotes.csv"
    rows = [
        f"{START + timedelta(days=day)},H100,{2.4 - 0.02 * max(day - 20, 0):.3f},{source}\n"
        for day in range(40)
        for source in "abc"
    ]
    path.write_text("date,model,usd_gpu_hour,source\n" + "".join(rows), encoding="utf-8")
    return path


def test_a_fall_is_drawn_and_said(bare: Sublet, quotes: Path) -> None:
    options = ("--no-own", "--column", "source=source", "--until", "2026-04-09")
    result = bare("index", str(quotes), *options)
    assert result.code == 0, result.err
    assert "H100, full height 2.40 USD per GPU-hour" in result.out
    assert "H100 has rolled over: 2.08 USD, and 2.40 on 2026-03-21" in result.err
    document = json.loads(bare("index", str(quotes), *options, "--json").out)
    (item,) = document["items"]
    assert item["sources"] == 3 and item["change_7d"] < 0
    assert item["rolled_over"] == {"peak_day": "2026-03-21", "peak_usd": 2.4}
    assert len(item["levels"]) == 40


def test_own_trades_are_one_source(sublet: Sublet, api: FakeApi) -> None:
    trade = {"day": "2026-03-01", "pool": "h200", "gpu_hours": "8.0", "usd_gpu_hour": "2.5"}
    api.on("GET /v1/trades", {"items": [trade]})
    result = sublet("index", "--sources", "1", "--json")
    (item,) = json.loads(result.out)["items"]
    assert (item["model"], item["usd"], item["sources"]) == ("h200", 2.5, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "when=x"], "is not FIELD=NAME with one of date, model"),
        (["--until", "soon"], "'soon' is not a day"),
        (["--column", "price=usd"], "has no column 'usd'"),
    ],
)
def test_what_is_wrong_is_said(
    bare: Sublet, quotes: Path, options: list[str], message: str
) -> None:
    result = bare("index", str(quotes), "--no-own", *options)
    assert result.code != 0
    assert message in result.err
