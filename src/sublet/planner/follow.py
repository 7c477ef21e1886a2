"""Following what gained most: which of many rules to obey, by what each would have gained so far.

Twice, because many rules of one kind differ little, and the best of many has been lucky too:
`leader` picks within one kind; `hedged` then mixes the kinds by what their picks, made before
the event, gained in truth.
"""

from typing import Final

import numpy as np

from sublet.planner.curve import Floats
from sublet.planner.outlook import HOURS_A_DAY

_LEADER_HALF_LIFE_HOURS: Final = 28.0 * HOURS_A_DAY
_CLOSE: Final = 0.02  # a rule that gained this much less than the best weighs a third
_CAUTION: Final = 0.25  # standard errors, over days, taken off each gain
_HEDGE_HALF_LIFE_HOURS: Final = 56.0 * HOURS_A_DAY
_HEDGED: Final = 0.02  # of all that was at stake: a kind that gained this much less weighs a third


def leader(gain: Floats, sellable: Floats, hours: int, unseen: Floats) -> Floats:
    """Return what to promise at each hour, by the gains of windows that had ended.

    Args:
        gain: what each rule gained with the window that starts at each hour, (hours, rules).
        sellable: the GPUs that each rule would promise, (hours, rules).
        hours: how long a window is.
        unseen: what each rule is charged, for each GPU, for what has never been seen, (rules,).

    Returns:
        shape (hours,), whole GPUs; nothing where no rule gained.
    """
    fade = 0.5 ** (1 / _LEADER_HALF_LIFE_HOURS)
    gained, out = np.zeros(len(unseen)), np.zeros(len(gain))
    squares, today = np.zeros(len(unseen)), np.zeros(len(unseen))
    for row in range(hours, len(gain)):
        gained = gained * fade + gain[row - hours]
        today, squares = today + gain[row - hours], squares * fade**2
        if row % HOURS_A_DAY == 0:
            squares, today = squares + today**2, np.zeros(len(unseen))
        if row >= HOURS_A_DAY + hours:
            error = np.sqrt(squares + today**2)
            net = gained - unseen * np.maximum(sellable[row], 1.0) - _CAUTION * error
            best = net.max()
            if best > 0:
                weight = np.exp((net - best) / (_CLOSE * best))
                out[row] = np.floor(weight @ sellable[row] / weight.sum() + 0.5)
    return out


def hedged(gain: Floats, picks: Floats, hours: int) -> Floats:
    """Return a mixture of `picks` at each hour, by the gains of windows that had ended.

    Args:
        gain: what each pick gained with the window that starts at each hour, (hours, kinds).
        picks: the GPUs that each kind would promise, (hours, kinds).
        hours: how long a window is.

    Returns:
        shape (hours,), whole GPUs.

    Source: Freund and Schapire, "A decision-theoretic generalization of on-line learning and an
    application to boosting", 1997: the algorithm Hedge, with a past that fades.
    """
    fade = 0.5 ** (1 / _HEDGE_HALF_LIFE_HOURS)
    gained, stake = np.zeros(picks.shape[1]), 0.0
    out = np.zeros(len(picks))
    for row in range(len(picks)):
        if row >= hours:
            gained = gained * fade + gain[row - hours]
            stake = stake * fade + float(np.abs(gain[row - hours]).max())
        weight = np.exp((gained - gained.max()) / (_HEDGED * max(stake, 1e-9)))
        out[row] = np.floor(weight @ picks[row] / weight.sum() + 0.5)
    return out
