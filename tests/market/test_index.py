"""The index: weighted by volume, without outliers, on enough sources, and final after two days."""

from datetime import date, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.errors import Invalid
from sublet.market.index import Level, Quote, levels, turn
from sublet.market.quotes_file import read_quotes

MARCH = date(2026, 3, 1)
TODAY = date(2026, 6, 1)


def quote(usd: float, source: str, *, day: int = 0, gpus: float = 1.0, late: int = 0) -> Quote:
    at = MARCH + timedelta(days=day)
    return Quote(
        day=at, model="H100", source=source, usd=usd, gpus=gpus,
        known_on=at + timedelta(days=late),
    )  # fmt: skip


def found(*quotes: Quote, sources: int = 3, today: date = TODAY) -> list[Level]:
    return list(levels(quotes, least_sources=sources, today=today).get("H100", ()))


def test_volume_weighs_and_no_source_weighs_more_than_half() -> None:
    day = {"today": MARCH}
    (level,) = found(quote(2.0, "a", gpus=2), quote(2.1, "b"), quote(2.2, "c"), **day)
    assert level.usd == pytest.approx((2.0 * 2 + 2.1 + 2.2) / 4)
    (capped,) = found(quote(2.0, "a", gpus=1_000), quote(2.1, "b"), quote(2.2, "c"), **day)
    assert capped.usd == pytest.approx(0.5 * 2.0 + 0.5 * 2.15)


def test_what_is_far_off_is_left_out_and_counted() -> None:
    normal = [quote(2 + n / 100, f"s{n}") for n in range(6)]
    (level,) = found(*normal, quote(20.0, "typo"), quote(0.01, "bait"), today=MARCH)
    assert (level.trimmed, level.quotes, level.sources) == (2, 6, 6)
    assert level.usd == pytest.approx(2.025)


def test_on_too_few_sources_there_is_no_level() -> None:
    assert found(quote(2.0, "a"), quote(2.1, "a"), quote(2.2, "b")) == []
    assert len(found(quote(2.0, "a"), quote(2.2, "b"), sources=2)) == 7


def test_a_day_counts_for_a_week_and_gaps_are_not_filled() -> None:
    sources = [quote(2.0, name, day=day) for name in "abc" for day in (0, 20)]
    days = [(one.day - MARCH).days for one in found(*sources)]
    assert days == [*range(7), *range(20, 27)]


def test_what_becomes_known_later_than_two_days_changes_no_past_level() -> None:
    known = [quote(2.0, name, day=day) for name in "abc" for day in range(10)]
    before = found(*known)
    after = found(*known, quote(2.2, "late", day=3, late=5))
    assert before[:6] == after[:6]
    assert before[6].usd < after[6].usd, "the sixth day is not final when it becomes known"
    changed = found(*known, quote(2.2, "late", day=3, late=2))
    assert [one.usd for one in changed[:3]] == [one.usd for one in before[:3]]
    assert changed[3].usd > before[3].usd
    today = MARCH + timedelta(days=9)
    assert [one.final for one in found(*known, today=today)] == [True] * 8 + [False] * 2


@given(st.integers(0, 2**32))
def test_neither_order_nor_the_future_changes_a_level(seed: int) -> None:
    dice = Random(seed)
    quotes = [
        quote(
            dice.uniform(1, 3), dice.choice("abcd"), day=dice.randrange(20), gpus=dice.random() + 1
        )
        for _ in range(40)
    ]
    whole = found(*quotes)
    dice.shuffle(quotes)
    assert found(*quotes) == whole
    cut = MARCH + timedelta(days=10)
    before = found(*quotes, today=cut)
    assert [(one.day, one.usd) for one in before] == [
        (one.day, one.usd) for one in whole if one.day <= cut
    ]
    for one in whole:
        assert 1 <= one.usd <= 3


def history(*usd: float) -> list[Level]:
    return [
        Level(day=MARCH + timedelta(days=n), usd=value, sources=3, quotes=3, trimmed=0, final=True)
        for n, value in enumerate(usd)
    ]


def test_an_index_that_falls_from_its_highest_level_has_rolled_over() -> None:
    rising = [2 + n / 50 for n in range(30)]
    assert turn(history(*rising)) is None
    assert turn(history(*rising, *[rising[-1] - 0.01 * n for n in range(5)])) is None
    falling = history(*rising, *[rising[-1] - 0.02 * n for n in range(1, 15)])
    said = turn(falling)
    assert said is not None
    assert (said.peak_day, said.peak_usd) == (MARCH + timedelta(days=29), rising[-1])
    recovering = history(*rising, *([2.0] * 8), *([2.3] * 7))
    assert turn(recovering) is None, "it is below its highest level, and rises"
    assert turn([]) is None


def test_files_are_read_by_any_names_and_bad_lines_are_named(folder: Path) -> None:
    path = folder / "cards.csv"
    path.write_text(
        "at,gpu,usd,who,n\n2026-03-01T10:00:00,H100,2.5,aws,8\n2026-03-01,H100,free,gcp,8\n"
        "2026-03-01,H100,-1,gcp,8\n2026-02-30,H100,2,gcp,8\n2026-03-02,H100,2.7,gcp,4\n",
        encoding="utf-8",
    )
    names = {"date": "at", "model": "gpu", "price": "usd", "source": "who", "gpus": "n"}
    read = read_quotes(path, names)
    assert [(q.source, q.usd, q.gpus) for q in read.quotes] == [("aws", 2.5, 8), ("gcp", 2.7, 4)]
    assert read.skipped == 3
    assert read.faults[0].startswith("cards.csv, line 3:")
    with pytest.raises(Invalid, match="has no column 'date'; it has at, gpu"):
        read_quotes(path, {})
    with pytest.raises(Invalid, match="cannot read"):
        read_quotes(folder / "none.csv", {})
