"""A baseline: LightGBM's quantile regression with split conformal calibration, fitted once."""

from typing import Final

import numpy as np

from sublet.core.errors import Unavailable
from sublet.planner.curve import HOUR_SECONDS, Curve, Floats
from sublet.planner.outlook import hourly
from sublet.planner.signals import Ints, Signals, lowest_ahead, signals

_CALIBRATED_ON: Final = 0.25  # the last part of the training
_ROUNDS: Final = 150
_FEWEST_ROWS: Final = 100


def falls(curve: Curve, hours: int, slots: Ints, *, share: float, train_until: int) -> Floats:
    """Return the fall that a `share` of windows of `hours` stays above, as a share of the pool.

    Args:
        curve: the history.
        hours: how long a window is.
        slots: at which windows start, shape (windows,).
        share: the quantile, in (0, 1).
        train_until: the slot before which all windows must end that are learnt from.

    Returns:
        shape (windows,); the whole pool where there is too little to learn from.

    Raises:
        Unavailable: LightGBM could not be loaded.

    Source: Romano, Patterson and Candès, "Conformalized quantile regression", 2019.
    """
    try:
        import lightgbm  # noqa: PLC0415 -- takes seconds to load
    except OSError as error:
        raise Unavailable(
            f"LightGBM could not be loaded ({error}); on Debian, install libgomp1"
        ) from None
    window = hours * HOUR_SECONDS // curve.step_seconds
    past = signals(curve, hourly(curve))
    kept = lowest_ahead(curve.idle, window)[past.slots]
    fall = (past.idle - kept) / np.maximum(past.total, 1.0)
    rows = np.flatnonzero(~np.isnan(fall) & (past.slots + window <= train_until))
    if len(rows) < _FEWEST_ROWS:
        return np.ones(len(slots))
    cut = len(rows) - round(len(rows) * _CALIBRATED_ON)
    fitted, held_out = rows[: max(cut - hours, 1)], rows[cut:]
    columns = _columns(past)
    model = lightgbm.train(
        {
            "objective": "quantile",
            "alpha": share,
            "learning_rate": 0.05,
            "num_leaves": 8,
            "min_data_in_leaf": max(20, len(fitted) // 40),
            "feature_fraction": 0.5,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "num_threads": 1,
            "seed": 1,
            "deterministic": True,
            "verbose": -1,
        },
        lightgbm.Dataset(columns[fitted], fall[fitted]),
        _ROUNDS,
    )
    missed = fall[held_out] - np.asarray(model.predict(columns[held_out]))
    rank = min(share * (1 + 1 / len(missed)), 1.0)
    offset = float(np.quantile(missed, rank, method="higher"))
    ahead: Floats = np.asarray(model.predict(_columns(signals(curve, slots)))) + offset
    return ahead


def _columns(known: Signals) -> Floats:
    return np.concatenate([known.levels[:, None], known.others], axis=1)
