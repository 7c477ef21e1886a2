"""The fleet: pools, a map of every node, and what each pool may lend."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import Invalid, NotFound

_NUMBERS: Final = ("notice_seconds", "lending_limit", "reserve", "firm_seconds", "credit_percent")
_EMPTY_IS_NONE: Final = (
    "lending_limit", "firm_confidence", "floor_usd_per_gpu_hour", "quiet_hours",
)  # fmt: skip


async def show(visit: Visit) -> Response:
    fleet = await visit.api.get("/v1/fleet")
    nodes = await visit.api.get("/v1/nodes")
    coming = await visit.api.get("/v1/coming-capacity")
    return visit.page(
        "operator/fleet.html", title="Fleet", pools=fleet["pools"], nodes=nodes["items"],
        coming=coming["items"], map=_map(nodes["items"]),
    )  # fmt: skip


def _map(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the nodes by pool and block, in as few letters as a fleet of 10,000 needs."""
    groups: dict[tuple[str, str], list[list[Any]]] = {}
    for node in nodes:
        cell = [node["name"], node["gpus"], node["leased_gpus"]]
        groups.setdefault((node["pool"], node["block"] or ""), []).append(cell)
    return {
        "groups": [
            {"pool": pool, "block": block, "nodes": cells}
            for (pool, block), cells in sorted(groups.items())
        ]
    }


async def show_pool(visit: Visit) -> Response:
    pool = _one(await visit.api.get("/v1/fleet"), visit.part("pool"))
    return visit.page("operator/pool.html", title=pool["name"], pool=pool)


def _one(fleet: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Raises NotFound: there is no such pool."""
    found: dict[str, Any] | None = next(
        (pool for pool in fleet["pools"] if pool["name"] == name), None
    )
    if found is None:
        raise NotFound(f"there is no pool {name[:100]!r}; the fleet's page lists them")
    return found


async def set_policy(visit: Visit) -> Response:
    """Change what a pool lends; what was promised and would not be allowed is shown first."""
    name = visit.part("pool")
    before = _one(await visit.api.get("/v1/fleet"), name)
    body: dict[str, Any] = {"lendable": visit.said("lendable") == "on"}
    for field in _NUMBERS:
        if (said := visit.said(field)) is not None:
            if not said.isdigit():
                raise Invalid(f"{field.replace('_', ' ')}: must be a whole number")
            body[field] = int(said)
    if (confidence := visit.said("firm_confidence")) is not None:
        try:
            body["firm_confidence"] = float(confidence)
        except ValueError:
            raise Invalid("firm confidence: must be a number such as 0.99") from None
    for field in ("floor_usd_per_gpu_hour", "quiet_hours"):
        if (said := visit.said(field)) is not None:
            body[field] = said
    body |= {field: None for field in _EMPTY_IS_NONE if field not in body}
    after = await visit.api.patch(
        f"/v1/pools/{name}", body | {"confirm": visit.said("confirm") == "on"}
    )
    kept = {field for field in after if field not in {"name", "gpus"}}
    visit.note(before={field: before[field] for field in kept}, after={f: after[f] for f in kept})
    return visit.go_to(f"/fleet/{name}", f"Saved. What is sold of {name} from now on goes by it.")
