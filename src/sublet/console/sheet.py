"""Pages of figures that can be mailed: tables and charts in one file, with all that they need.

They load nothing and send nothing, as the page of `sublet audit --html`, whose style they have.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

_USES: Final = (
    "internal", "contract", "reserved", "on_demand", "interruptible", "model", "idle", "down",
)  # fmt: skip


def render(title: str, lead: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """Return a page as HTML.

    Args:
        title: what it is.
        lead: one line below it.
        parts: each {"heading", "lead", "figures" | "table" | "chart"}: figures are [name, value]
            pairs; a table has "columns" (a name and a unit each) and "rows"; a chart has "kind"
            (line or stack), "labels", "unit" and "series" of names and values.
    """
    data = {"title": title, "lead": lead, "parts": parts}
    # "<" would let a name from outside end the script; the rest is JSON's own quoting.
    written = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _part("sheet.html")
        .replace("/*STYLE*/", _part("audit_page.css") + _part("sheet.css"))
        .replace("/*SCRIPT*/", _part("sheet.js"))
        .replace("/*DATA*/", written)
    )


def returns_page(document: Mapping[str, Any]) -> str:
    """Draw what `sublet returns` prints."""
    whole, lines = document["total"], document["lines"]
    found = document["yield"]
    figures = [
        ["revenue", whole["revenue_usd"], "usd"],
        ["book cost", whole["book_cost_usd"], "usd"],
        ["cost of a GPU-hour at work", whole["usd_per_gpu_hour"], "usd2"],
        ["return on book value a year", whole["roic"], "share"],
        ["payback, years", whole["payback_years"], "number"],
        ["added by selling", whole["added_usd"], "usd"],
    ]
    parts: list[dict[str, Any]] = [{"heading": "In short", "figures": figures}]
    if found is not None:
        parts.append(
            {
                "heading": "Yield of a megawatt",
                "lead": "Revenue a year = price x share sold x density x 8,760 hours.",
                "figures": [
                    ["per MW and year", found["usd_per_megawatt_year"], "usd"],
                    ["per GW and year", found["usd_per_gigawatt_year"], "usd"],
                    ["price per GPU-hour sold", found["usd_per_gpu_hour"], "usd2"],
                    ["share sold", found["share_sold"], "share"],
                    ["GPUs per MW", found["gpus_per_megawatt"], "number"],
                ],
            }
        )
    parts.append(
        {
            "heading": "GPU-hours by use",
            "chart": {
                "kind": "stack",
                "labels": [line["name"] for line in lines],
                "unit": "hours",
                "series": [
                    {"name": use.replace("_", " "),
                     "values": [line["gpu_hours"].get(use, 0.0) for line in lines]}
                    for use in _USES
                ],
            },
        }
    )  # fmt: skip
    columns = [
        ["", "name", "text"], ["GPUs", "gpus", "number"], ["revenue", "revenue_usd", "usd"],
        ["power", "power_usd", "usd"], ["upkeep", "upkeep_usd", "usd"],
        ["depreciation", "depreciation_usd", "usd"], ["book value", "book_value_usd", "usd"],
        ["cost/GPU-hour", "usd_per_gpu_hour", "usd2"], ["margin", "gross_margin", "share"],
        ["ROIC", "roic", "share"], ["payback, years", "payback_years", "number"],
        ["IRR", "irr", "share"], ["NPV", "npv_usd", "usd"], ["added", "added_usd", "usd"],
    ]  # fmt: skip
    parts.append({"heading": f"By {document['by']}", "table": _table(columns, [*lines, whole])})
    return render("Returns", f"{document['from']} to {document['to']}, days of UTC", parts)


def stress_page(document: Mapping[str, Any]) -> str:
    """Draw what `sublet stress` prints."""
    quarters = document["quarters"]
    labels = [quarter["start"][:7] for quarter in quarters]

    def line(*named: tuple[str, str]) -> list[dict[str, Any]]:
        return [{"name": name, "values": [q[key] for q in quarters]} for name, key in named]

    parts: list[dict[str, Any]] = [
        {
            "heading": "In short",
            "figures": [
                ["cash in the end", quarters[-1]["cumulative_usd"], "usd"],
                ["first quarter that loses cash", document["negative_from"] or "none", "text"],
                ["covenant broken from", document["covenant_broken_from"] or "never", "text"],
                ["break-even price", document["break_even_usd_per_gpu_hour"], "usd2"],
            ],
        },
        {
            "heading": "Cash by quarter",
            "chart": {
                "kind": "line", "labels": labels, "unit": "usd",
                "series": line(("revenue", "revenue_usd"), ("free cash", "free_cash_usd"),
                               ("cumulative", "cumulative_usd")),
            },
        },
        {
            "heading": "Price",
            "lead": f"Source: {document['price_source']}.",
            "chart": {"kind": "line", "labels": labels, "unit": "usd2",
                      "series": line(("per GPU-hour", "usd_per_gpu_hour"))},
        },
    ]  # fmt: skip
    if (dice := document.get("monte_carlo")) is not None:
        parts.append(
            {
                "heading": f"With dice: cumulative cash of {dice['runs']} runs",
                "lead": f"{100 * dice['negative_share']:.1f} % of the runs end below nothing,"
                f" {100 * dice['covenant_broken_share']:.1f} % break the covenant.",
                "chart": {
                    "kind": "line", "labels": labels, "unit": "usd",
                    "series": [
                        {"name": f"{name[1:]} of 100", "values": values}
                        for name, values in dice["cumulative_usd"].items()
                    ],
                },
            }
        )  # fmt: skip
    columns = [
        ["quarter", "start", "text"], ["price", "usd_per_gpu_hour", "usd2"],
        ["GPUs", "gpus", "number"], ["sold", "sold_gpus", "number"],
        ["revenue", "revenue_usd", "usd"], ["power", "power_usd", "usd"],
        ["other cost", "other_cost_usd", "usd"], ["interest", "interest_usd", "usd"],
        ["principal", "principal_usd", "usd"], ["free cash", "free_cash_usd", "usd"],
        ["cumulative", "cumulative_usd", "usd"], ["DSCR", "dscr", "number"],
    ]  # fmt: skip
    parts.append({"heading": "Quarters", "table": _table(columns, quarters)})
    return render(f"Stress: {document['scenario']}", document["about"], parts)


def _table(columns: Sequence[Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "columns": [[title, unit] for title, _, unit in columns],
        "rows": [[row[key] for _, key, _ in columns] for row in rows],
    }


def _part(name: str) -> str:
    return (resources.files("sublet.console") / name).read_text(encoding="utf-8")
