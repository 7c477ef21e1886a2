"""Statements, outlooks and mixes as documents: what the API and `--json` print. USD, as numbers.

They are estimates and shares of records, rounded for reading; the records themselves are exact.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sublet.finance.capital import Answer
from sublet.finance.events import Found, Together
from sublet.finance.flows import TOTAL, Return
from sublet.finance.record import MODEL, USES, Record
from sublet.finance.statement import Line, cost_per_million_tokens, total, yield_of
from sublet.finance.stress import Outlook, Quarter, Scenario, Spread


def statement_document(
    lines: Sequence[Line],
    record: Record,
    *,
    by: str,
    discount: float,
    pace: Mapping[str, Return],
    so_far: Mapping[str, Return] | None = None,
) -> dict[str, Any]:
    """Return a statement, its total, and what the total's power brings in a year.

    Args:
        lines: of the statement.
        record: of the period.
        by: what a line is.
        discount: a year, at which present values are.
        pace: {line: its return} were every month like this period.
        so_far: {line: its return} since it was bought; None: it was not asked for.
    """
    whole = total(lines)
    per_hour = whole.cost_per_hour
    model_cost = (per_hour or 0.0) * whole.hours[MODEL]
    tokens = sum(record.tokens.values())
    return {
        "from": record.start.isoformat(),
        "to": record.end.isoformat(),
        "by": by,
        "discount": discount,
        "lines": [_line(line) | _returns(line.name, pace, so_far) for line in lines],
        "total": _line(whole) | _returns(TOTAL, pace, so_far),
        "yield": _yield(whole),
        "tokens": dict(record.tokens),
        "usd_per_million_tokens": _money(cost_per_million_tokens(model_cost, tokens), 6),
    }


def _returns(
    name: str, pace: Mapping[str, Return], so_far: Mapping[str, Return] | None
) -> dict[str, Any]:
    life = pace.get(name)
    out = {
        "irr": None if life is None else _share(life.rate),
        "npv_usd": None if life is None else _money(life.npv),
    }
    if so_far is not None:
        past = so_far.get(name)
        out["xirr_so_far"] = None if past is None else _share(past.rate)
        out["npv_so_far_usd"] = None if past is None else _money(past.npv)
    return out


def _line(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "gpus": round(line.gpus, 2),
        "gpu_hours": {use: round(line.hours[use], 2) for use in USES},
        "revenue_usd": _money(line.total_revenue),
        "revenue_usd_by_product": {k: _money(v) for k, v in sorted(line.revenue.items()) if v},
        "power_usd": _money(line.power),
        "upkeep_usd": _money(line.upkeep),
        "cash_cost_usd": _money(line.cash_cost),
        "depreciation_usd": _money(line.depreciation),
        "book_cost_usd": _money(line.book_cost),
        "book_value_usd": _money(line.book_end),
        "usd_per_gpu_hour": _money(line.cost_per_hour, 4),
        "gross_margin": _share(line.margin),
        "roic": _share(line.roic),
        "payback_years": _money(line.payback_years),
        "added_usd": _money(line.added),
        "megawatts": round(line.megawatts, 6),
    }


def _yield(line: Line) -> dict[str, Any] | None:
    found = yield_of(line)
    if found is None:
        return None
    return {
        "usd_per_megawatt_year": _money(found.usd_per_megawatt_year),
        "usd_per_gigawatt_year": _money(found.usd_per_gigawatt_year),
        "usd_per_gpu_hour": _money(found.usd_per_gpu_hour, 4),
        "share_sold": _share(found.share_sold),
        "gpus_per_megawatt": round(found.gpus_per_megawatt, 2),
    }


def stress_document(scenario: Scenario, found: Outlook, spread: Spread | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "scenario": scenario.name,
        "about": scenario.about,
        "price_source": scenario.price.source,
        "quarters": [_quarter(quarter) for quarter in found.quarters],
        "negative_from": _day(found.negative_from),
        "covenant_dscr": scenario.covenant_dscr,
        "covenant_broken_from": _day(found.covenant_broken_from),
        "break_even_usd_per_gpu_hour": _money(found.break_even, 4),
    }
    if spread is not None:
        document["monte_carlo"] = {
            "runs": spread.runs,
            "cumulative_usd": {
                f"p{percent}": [_money(value) for value in values]
                for percent, values in spread.percentiles
            },
            "negative_share": _share(spread.negative_share),
            "covenant_broken_share": _share(spread.covenant_broken_share),
        }
    return document


def _quarter(quarter: Quarter) -> dict[str, Any]:
    return {
        "start": quarter.start.isoformat(),
        "usd_per_gpu_hour": _money(quarter.price, 4),
        "gpus": round(quarter.gpus, 1),
        "sold_gpus": round(quarter.sold, 1),
        "revenue_usd": _money(quarter.revenue),
        "power_usd": _money(quarter.power),
        "other_cost_usd": _money(quarter.other_cost),
        "interest_usd": _money(quarter.interest),
        "principal_usd": _money(quarter.principal),
        "bought_usd": _money(quarter.bought),
        "free_cash_usd": _money(quarter.free_cash),
        "cumulative_usd": _money(quarter.cumulative),
        "dscr": _money(quarter.dscr, 3),
        "covenant_kept": quarter.covenant_kept,
    }


def mix_document(found: Answer) -> dict[str, Any]:
    def rounded(values: Sequence[float]) -> list[float]:
        return [round(value, 1) + 0.0 for value in values]

    return {
        "verdict": found.verdict,
        "because": found.because,
        "cost_usd": _money(found.cost),
        "cost_doing_nothing_usd": _money(found.cost_doing_nothing),
        "saved_usd": _money(found.cost_doing_nothing - found.cost),
        "months": {
            "bought": rounded(found.bought),
            "leased_in": rounded(found.leased_in),
            "sold": rounded(found.sold),
            "parted_with": rounded(found.parted),
            "idle": rounded(found.idle),
        },
    }


def events_document(found: Sequence[Found], mean: Together | None) -> dict[str, Any]:
    return {
        "events": [
            {
                "event": one.event.isoformat(),
                "day": one.day.isoformat(),
                "beta": None if one.beta is None else round(one.beta, 4),
                "abnormal": [round(value, 6) for value in one.abnormal],
                "car": round(one.car, 6),
                "low": round(one.low, 6),
                "high": round(one.high, 6),
                "p_value": round(one.p_value, 4),
            }
            for one in found
        ],
        "together": None if mean is None else _together(mean),
    }


def _together(mean: Together) -> Mapping[str, Any]:
    return {
        "events": mean.events,
        "car": round(mean.car, 6),
        "low": round(mean.low, 6),
        "high": round(mean.high, 6),
        "p_value": round(mean.p_value, 4),
    }


def _money(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits) + 0.0


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _day(day: Any) -> str | None:
    return None if day is None else str(day)
