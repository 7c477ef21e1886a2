"""What to do about capital: the least-cost mix, where it can be worked out by hand."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from sublet.core.errors import Invalid
from sublet.finance.capital import HOURS_A_MONTH, Question, best_mix
from sublet.finance.question import read_question

MONTHS = 24


def question(**changes: Any) -> Question:
    values: dict[str, Any] = {
        "demand": [1000.0] * MONTHS, "owned": [1000.0] * MONTHS, "rent": [3.0] * MONTHS,
        "sale": [2.0] * MONTHS,
        "value": [40_000 * (1 - m / 60) for m in range(MONTHS)],
        "cost": 45_000.0, "power": 0.15, "sold_share": 0.9, "lead_months": 6, "life_months": 60,
    }  # fmt: skip
    return Question(**values | changes)


def test_what_is_needed_and_owned_is_left_as_it_is() -> None:
    found = best_mix(question())
    assert found.verdict == "balanced"
    assert sum(found.bought) == sum(found.parted) == sum(found.leased_in) == pytest.approx(0)
    assert found.cost == pytest.approx(found.cost_doing_nothing)


def test_a_surplus_that_sells_well_and_is_needed_later_is_a_timing_mismatch() -> None:
    found = best_mix(question(demand=[600.0] * 12 + [1000.0] * 12))
    assert found.verdict == "timing mismatch"
    assert list(found.sold[:12]) == pytest.approx([360.0] * 12)
    assert list(found.idle[:12]) == pytest.approx([40.0] * 12)
    assert list(found.sold[12:]) == pytest.approx([0.0] * 12)


def test_a_surplus_that_nobody_will_need_or_buy_hours_of_is_an_overbuild() -> None:
    found = best_mix(question(demand=[600.0] * MONTHS, sale=[0.3] * MONTHS))
    assert found.verdict == "overbuild"
    assert sum(found.parted) == pytest.approx(400)
    assert found.parted[0] == pytest.approx(400), "their value falls: at once is best"
    assert found.cost < found.cost_doing_nothing


def test_a_lasting_shortage_is_bought_and_leased_in_until_it_comes() -> None:
    found = best_mix(question(demand=[1500.0] * MONTHS))
    assert found.verdict == "short"
    assert sum(found.bought) == pytest.approx(500)
    assert list(found.leased_in[:6]) == pytest.approx([500.0] * 6), "the lead time"
    assert list(found.leased_in[6:]) == pytest.approx([0.0] * (MONTHS - 6))


def test_a_short_peak_is_leased_in() -> None:
    demand = [1000.0] * MONTHS
    demand[10] = 1400.0
    found = best_mix(question(demand=demand))
    assert found.leased_in[10] == pytest.approx(400)
    assert sum(found.bought) == pytest.approx(0)
    assert found.cost - best_mix(question()).cost == pytest.approx(400 * 3.0 * HOURS_A_MONTH)


def test_bad_figures_are_named() -> None:
    for changes, why in (
        ({"owned": [1.0]}, "owned has 1 months"), ({"demand": [-1.0] * MONTHS}, "demand must not"),
        ({"sold_share": 1.5}, "share"), ({"cost": 0.0}, "costs more"), ({"life_months": 0}, "life"),
        ({"lead_months": -1}, "lead"),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=why):
            replace(question(), **changes)
    with pytest.raises(Invalid, match="a month at least"):
        question(demand=[], owned=[], rent=[], sale=[], value=[])


FILE = """
start = 2026-12-01
months = 24
demand = [[0, 600], [12, 1000]]
owned = [[0, 1000]]
usd_per_gpu = 45_000
[sale]
usd_per_gpu_hour = 2.0
[rent]
usd_per_gpu_hour = 3.0
half_life_months = 48
"""


def test_a_question_is_read_from_a_file(folder: Path) -> None:
    path = folder / "q.toml"
    path.write_text(FILE)
    asked, start = read_question(path)
    assert start == date(2026, 12, 1)
    assert (asked.demand[11], asked.demand[12], len(asked.owned)) == (600, 1000, 24)
    assert asked.rent[0] == 3.0
    assert asked.rent[-1] < 2.5
    assert best_mix(asked).verdict == "timing mismatch"
    for old, new, why in (
        ("[0, 600], ", "", "from month 0 on"), ("45_000", "0", "usd_per_gpu must lie"),
        ("months = 24", "months = 24\nx = 1", "unknown: x"), ("start =", "start", "no TOML"),
    ):  # fmt: skip
        path.write_text(FILE.replace(old, new))
        with pytest.raises(Invalid, match=why):
            read_question(path)
