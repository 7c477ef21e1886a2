"""Reading the question of `sublet capital` from TOML; `docs/operate/returns.md` lists every key."""

import tomllib
from datetime import date
from pathlib import Path

from sublet.core.errors import Invalid
from sublet.core.tables import Table
from sublet.finance.asset import Curve, add_months, month_of
from sublet.finance.capital import Question
from sublet.finance.curves import PriceCurve, read_curve
from sublet.finance.register import read_text


def read_question(path: Path) -> tuple[Question, date]:
    """Return what is asked, and its first month.

    Raises:
        Invalid: the file cannot be read, or a key is missing, unknown or out of its bounds.
    """
    try:
        root = Table(tomllib.loads(read_text(path)), path.name)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path.name} is no TOML: {error}") from None
    start = month_of(root.day("start", date(2026, 12, 1)))
    months = root.count("months", 36, least=1, most=240)
    demand = _steps(root, "demand", months)
    owned = _steps(root, "owned", months)
    cost = root.number("usd_per_gpu", least=1)
    value = root.table("value")
    curve = Curve(
        points=value.pairs("points") or ((0, 1.0), (60, 0.15)),
        source=value.text("source", "made up: a straight fall to 15 per cent in five years"),
        dated=value.day("dated", start),
    )
    age = value.number("age_months", 0.0, most=1200)
    value.end()
    sale = _price(root.table("sale"), start, path.parent)
    rent = _price(root.table("rent"), start, path.parent)
    kwh, watts = root.number("usd_per_kwh", 0.08, most=1e3), root.number("watts", 1400, most=1e6)
    question = Question(
        demand=demand,
        owned=owned,
        rent=[rent.at(add_months(start, month)) for month in range(months)],
        sale=[sale.at(add_months(start, month)) for month in range(months)],
        value=[cost * curve.at(age + month) for month in range(months)],
        cost=cost,
        power=watts / 1000 * root.number("pue", 1.3, least=1, most=10) * kwh,
        sold_share=root.number("sold_share", 0.8, most=1),
        lead_months=root.count("lead_months", 9, most=240),
        life_months=root.count("life_months", 60, least=1, most=1200),
    )
    root.end()
    return question, start


def _steps(root: Table, key: str, months: int) -> list[float]:
    """Read [[month, GPUs], …]: each holds until the next one."""
    steps = root.pairs(key)
    if not steps or steps[0][0] != 0:
        raise root.wrong(f"{key} must be pairs such as [[0, 12000], [6, 15000]], from month 0 on")
    return [next(gpus for at, gpus in reversed(steps) if at <= month) for month in range(months)]


def _price(table: Table, start: date, folder: Path) -> PriceCurve:
    if table.has("file"):
        path = folder / table.text("file")
        table.end()
        return read_curve(read_text(path), path.name)
    usd = table.number("usd_per_gpu_hour", least=1e-6, most=1e6)
    half_life = table.number("half_life_months", 0.0, most=1200)
    table.end()
    return PriceCurve(points=((start, usd),), source="the question", half_life_months=half_life)
