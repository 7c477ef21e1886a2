"""A lot of GPUs, with whatever a test wants otherwise."""

from datetime import date
from typing import Any

from sublet.core.money import NANOS, Money
from sublet.finance.asset import Kind, Lot, Method


def usd(amount: float) -> Money:
    return Money(round(amount * NANOS))


def a_lot(**changes: Any) -> Lot:
    values: dict[str, Any] = {
        "name": "one", "kind": Kind.GPUS, "site": "north", "pool": "h100", "generation": "H100",
        "gpus": 100, "bought_on": date(2026, 1, 1), "in_service_on": date(2026, 1, 1),
        "cost": usd(5_000_000), "life_months": 60, "salvage": usd(500_000),
        "method": Method.STRAIGHT, "watts": 1400.0, "idle_watts": 400.0, "pue": 1.3,
        "usd_per_kwh": 0.08, "usd_per_month": 0.0, "debt": None,
    }  # fmt: skip
    return Lot(**values | changes)


def a_building(**changes: Any) -> Lot:
    return a_lot(
        **{"name": "hall", "kind": Kind.BUILDING, "pool": "", "gpus": 0, "generation": "building",
           "watts": 0.0, "idle_watts": 0.0, "cost": usd(1_200_000), "salvage": usd(0),
           "life_months": 120} | changes
    )  # fmt: skip
