"""Following what gained most: only what was over, no rule that never gained, the best kind soon."""

import numpy as np

from sublet.planner.follow import hedged, leader

HOURS = 24 * 20


def test_the_rule_that_gained_is_followed_and_no_rule_that_lost() -> None:
    sellable = np.tile([10.0, 30.0], (HOURS, 1))
    unseen = np.full(2, 0.1)
    good = np.tile([5.0, 9.0], (HOURS, 1))
    assert (leader(good, sellable, 4, unseen)[100:] == 30).all()
    assert leader(-good, sellable, 4, unseen).sum() == 0


def test_one_that_gained_once_by_chance_is_not_followed_while_that_is_all() -> None:
    gain = np.zeros((HOURS, 1))
    gain[50] = 3.0
    assert leader(gain, np.full((HOURS, 1), 10.0), 1, np.full(1, 1.0)).sum() == 0


def test_what_is_not_over_changes_nothing() -> None:
    dice = np.random.default_rng(2)
    gain, sellable = dice.normal(1, 1, (HOURS, 5)), dice.integers(0, 50, (HOURS, 5)) * 1.0
    other = gain.copy()
    other[300:] = -other[300:]
    for told, retold in (
        (leader(gain, sellable, 4, np.ones(5)), leader(other, sellable, 4, np.ones(5))),
        (hedged(gain, sellable, 4), hedged(other, sellable, 4)),
    ):
        assert (told[:304] == retold[:304]).all()
        assert (told[304:] != retold[304:]).any()


def test_a_hedge_starts_in_the_middle_and_ends_with_the_better_kind() -> None:
    picks = np.tile([0.0, 40.0], (HOURS, 1))
    gain = np.tile([0.0, 2.0], (HOURS, 1))
    out = hedged(gain, picks, 1)
    assert out[0] == 20 and out[-1] == 40
    assert (np.diff(out) >= 0).all()
