"""The page of `sublet audit --html`: one file, with its charts, data and script inside.

It loads nothing and sends nothing, so it can be mailed and opened anywhere; its own security
policy holds it to that.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import combinations
from typing import Any, Final

from sublet.core.money import Rate
from sublet.planner.idle.audit import Audit, PoolAudit
from sublet.planner.idle.hindsight import WINDOW_HOURS, Prices, best_mix
from sublet.planner.idle.report import Series, document, hours, series
from sublet.planner.idle.timeline import HOUR_S

_POINTS: Final = 1_600  # columns of the chart of all pools
_ALL_POINTS: Final = 24_000  # of all the pools' own charts together, so that the page stays small
_MOST_POOLS: Final = 100  # that get charts of their own


def render(audit: Audit) -> str:
    """Return the page as HTML."""
    drawn = audit.pools[:_MOST_POOLS]
    points = max(min(_POINTS, _ALL_POINTS // len(drawn)), 200)
    every = [_mixes(pool) for pool in audit.pools]
    data = {
        "audit": document(audit),
        "series": {
            "total": _series(series([pool.timeline for pool in audit.pools], points=_POINTS)),
            "pools": {pool.name: _series(series([pool.timeline], points=points)) for pool in drawn},
        },
        "mixes": {
            "total": _added_up(every),
            "pools": {pool.name: mixes for pool, mixes in zip(drawn, every, strict=False)},
        },
    }
    # "<" would let a name from the files end the script; the rest is JSON's own quoting.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _part("audit_page.html")
        .replace("/*STYLE*/", _part("audit_page.css"))
        .replace("/*SCRIPT*/", _part("audit_page.js"))
        .replace("/*DATA*/", text)
    )


def _part(name: str) -> str:
    return (resources.files("sublet.console") / name).read_text(encoding="utf-8")


def _series(of: Series) -> dict[str, Any]:
    return {
        "start": of.start,
        "step_s": of.step_s,
        "total": of.total,
        "running": of.running,
        "pending": of.pending,
        "least_idle": of.least_idle,
    }


def _mixes(pool: PoolAudit) -> dict[str, dict[str, float]]:
    """Return GPU-hours by kind for every choice of window lengths, such as "24h 4h".

    Whoever reads the page changes prices, and with them which lengths are worth selling.
    """
    found = {}
    for many in range(len(WINDOW_HOURS) + 1):
        for chosen in combinations(WINDOW_HOURS, many):
            mix = best_mix(pool.hours, _prices_for(chosen))
            parts = {f"{h}h": hours(mix.firm[h].gpu_seconds) for h in chosen}
            parts["interruptible"] = hours(mix.interruptible.gpu_seconds)
            found[" ".join(f"{h}h" for h in chosen)] = parts
    return found


def _prices_for(chosen: Sequence[int]) -> Prices:
    """Return prices at which just these lengths are worth selling."""
    return Prices(
        firm={h: Rate(nanos=1 + h if h in chosen else 0, per=HOUR_S) for h in WINDOW_HOURS},
        interruptible=Rate(nanos=1, per=HOUR_S),
    )


def _added_up(every: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        choice: {kind: round(sum(mixes[choice][kind] for mixes in every), 2) for kind in kinds}
        for choice, kinds in every[0].items()
    }
