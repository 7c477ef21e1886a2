"""What the same hours of earlier days did, as far as it was over."""

import numpy as np
import pytest

from sublet.planner.seasons import Seasons

DAY = 24


def starts(*rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(rows, dtype=np.int64) * 3_600


def test_means_are_of_the_same_hour_of_a_week_of_four_weeks_and_of_weekdays() -> None:
    falls = np.repeat(np.arange(40.0), DAY)  # on day n by n
    falls[np.arange(len(falls)) % DAY != 9] = 100  # but only at nine
    week, month, weekdays = Seasons(hours=4, start=0, falls=falls).columns(starts(40 * DAY + 9))[0]
    assert week == np.mean(range(33, 40))
    assert month == np.mean(range(12, 40))
    assert weekdays == np.mean([12, 19, 26, 33])


@pytest.mark.parametrize(("hours", "newest"), [(1, 9), (24, 9), (25, 8), (168, 3)])
def test_windows_that_are_not_over_say_nothing(hours: int, newest: int) -> None:
    falls = np.full(10 * DAY, np.nan)
    seasons = Seasons(hours=hours, start=0, falls=falls)
    now = starts(10 * DAY)
    assert seasons.columns(now).tolist() == [[0, 0, 0]]
    falls[(newest + 1) * DAY :: DAY] = 1.0
    assert seasons.columns(now).tolist() == [[0, 0, 0]]
    falls[newest * DAY] = 1.0
    assert seasons.columns(now)[0, :2].tolist() == [1, 1]


def test_its_end_is_enough_for_whoever_asks_later() -> None:
    falls = np.random.default_rng(1).random(100 * DAY)
    whole = Seasons(hours=24, start=7_200, falls=falls)
    asked = starts(*range(100 * DAY + 2, 107 * DAY, 5))
    assert whole.recent().columns(asked) == pytest.approx(whole.columns(asked))
    assert len(whole.recent().falls) == 29 * DAY
