"""A stress scenario whose numbers are moved by sliders."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sublet.core.errors import Invalid
from sublet.finance.report import stress_document
from sublet.finance.scenarios import load, shipped
from sublet.finance.stress import Scenario, monte_carlo, outlook

_RUNS: Final = 100


@dataclass(frozen=True, slots=True)
class Slider:
    key: str
    title: str
    unit: str
    least: float
    most: float
    step: float
    default: float


SLIDERS: Final = (
    Slider("price", "Rental price", "% of the scenario's", 20, 200, 5, 100),
    Slider("sold", "Share of GPUs sold", "points", -50, 50, 5, 0),
    Slider("internal", "Kept for internal jobs", "points", -50, 50, 5, 0),
)


def play(asked: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page shows.

    Raises:
        Invalid: there is no such scenario, or a slider is beyond its ends.
    """
    names = shipped()
    name = asked["scenario"] or names[0]
    if name not in names:
        raise Invalid(f"scenario: must be one of {', '.join(names)}")
    at = {one.key: _value(one, asked[one.key]) for one in SLIDERS}
    scenario = _moved(load(name), at)
    document = stress_document(
        scenario, outlook(scenario), monte_carlo(scenario, runs=_RUNS, seed=1)
    )
    quarters = document["quarters"]
    labels = [quarter["start"][:7] for quarter in quarters]

    def line(title: str, key: str, colour: str) -> dict[str, Any]:
        return {"name": title, "key": colour, "line": True, "values": [q[key] for q in quarters]}

    cash = {
        "kind": "lines", "labels": labels, "unit": "usd",
        "series": [line("revenue", "revenue_usd", "internal"),
                   line("free cash", "free_cash_usd", "on_demand"),
                   line("cumulative", "cumulative_usd", "contract")],
    }  # fmt: skip
    price = {
        "kind": "lines", "labels": labels, "unit": "usd", "height": 200,
        "series": [line("a GPU-hour", "usd_per_gpu_hour", "model")],
    }  # fmt: skip
    return {
        "scenarios": names, "chosen": name, "about": scenario.about, "document": document,
        "sliders": [(one, at[one.key]) for one in SLIDERS], "cash": cash, "price": price,
    }  # fmt: skip


def _value(slider: Slider, text: str) -> float:
    try:
        value = float(text or slider.default)
    except ValueError:
        raise Invalid(f"{slider.key}: must be a number") from None
    if not slider.least <= value <= slider.most:
        raise Invalid(f"{slider.key}: must lie in {slider.least:g} to {slider.most:g}")
    return value


def _moved(scenario: Scenario, at: Mapping[str, float]) -> Scenario:
    """Return the scenario with its price and shares as the sliders have them."""
    return replace(
        scenario,
        price=scenario.price.scaled_to(scenario.price.points[0][1] * at["price"] / 100),
        sold_share=_share(scenario.sold_share + at["sold"] / 100),
        internal_share=_share(scenario.internal_share + at["internal"] / 100),
    )


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)
