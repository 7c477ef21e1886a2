"""Plans of one pool at many instants at once: what `make_plan` would have said at each of them.

A simulation plans every pool every five minutes. This asks the same model the same question for
a whole week of instants in one go; a test compares it with `make_plan` one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sublet.planner.curve import Curve, Floats
from sublet.planner.outlook import SHALLOW
from sublet.planner.plan import ANCHORS, Model
from sublet.planner.signals import Ints, signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What may be promised for `hours`, in a window that starts `lead_hours` from now."""

    hours: int
    lead_hours: int = 0  # or one of the planner's `ANCHORS`


def firm_at(curve: Curve, model: Model, slots: Ints, asks: Sequence[Ask]) -> Floats:
    """Return the whole GPUs that may be promised, shape (asks, slots).

    Args:
        curve: the pool's history; only what lies before each slot is looked at.
        model: what was learnt of it before the first of `slots`.
        slots: slots that start now, each in its own plan; in 1 … len(curve).
        asks: which promises.
    """
    known = signals(curve, slots)
    out = np.zeros((len(asks), len(slots)))
    for place, ask in enumerate(asks):
        assert ask.lead_hours == 0 or ask.lead_hours in ANCHORS, ask
        depth = model.depths[ask.hours]
        if depth is None:
            continue
        middles, spreads = np.zeros(len(slots)), np.zeros(len(slots))
        if ask.lead_hours:
            # A lead that is an anchor needs no interpolation.
            middles, _, spreads = (
                np.nan_to_num(values) for values in model.ahead[ask.lead_hours].predict(known)
            )
        middle, spread, usual = model.fits[ask.hours].predict(known)
        near, far = min(depth, SHALLOW), max(depth - SHALLOW, 0.0)
        wide = near * spread + far * usual
        fall = middles + middle + np.copysign(np.hypot(wide, max(depth, 0.0) * spreads), wide)
        limit = np.fmin(known.idle, model.fits[ask.hours].most * known.total)
        room = np.clip(known.idle - fall * known.total, 0.0, limit)
        stale = np.isnan(curve.idle[slots - 1])
        out[place] = np.where(stale, 0.0, np.floor(np.nan_to_num(room) + 1e-9))
    return out
