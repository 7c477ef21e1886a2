"""What needs somebody: one line a matter, with where to go."""

from typing import Any, Final

from sublet.console.view import link, seconds
from sublet.console.visit import Visit
from sublet.core.db import load_queries

QUERIES: Final = load_queries("sublet.console")


async def list_matters(visit: Visit) -> list[dict[str, Any]]:
    """List them, the worst first."""
    status = await visit.api.get("/v1/status")
    fleet = await visit.api.get("/v1/fleet")
    promised = {pool["name"]: pool["notice_seconds"] for pool in fleet["pools"]}
    found = []
    for pool, waits in status["internal_waits"].items():
        if waits["p99_seconds"] > promised.get(pool, 0):
            found.append(
                _matter(
                    "bad", f"Internal jobs waited too long in {pool}",
                    f"{seconds(waits['p99_seconds'])} at p99, {seconds(promised.get(pool, 0))}"
                    " was promised", link("/reclaims", pool=pool),
                )
            )  # fmt: skip
    for pool in fleet["pools"]:
        if pool["internal_pending"] > pool["idle"]:
            found.append(
                _matter(
                    "warn", f"{pool['internal_pending']} GPUs are waited for in {pool['name']}",
                    "by internal jobs, beyond what is idle", link(f"/fleet/{pool['name']}"),
                )
            )  # fmt: skip
        if not pool["lendable"]:
            found.append(_matter("warn", f"Nothing of {pool['name']} is lent",
                                 f"{pool['idle']} GPUs are idle", link(f"/fleet/{pool['name']}")))  # fmt: skip
    found += [
        _matter("warn", "Not ready yet", what, link("/models")) for what in status["waiting_for"]
    ]
    for name, state in status["suppliers"].items():
        if state not in {"ready", "stopped"}:
            found.append(_matter("warn", f"Supplier {name}", state, link("/models")))
    today = visit.site.ground.clock.now().date()
    overdue = await visit.db(lambda tx: tx.execute(QUERIES["overdue"], {"today": today}).fetchall())
    for invoice in overdue:
        found.append(
            _matter(
                "bad", f"Invoice {invoice['number']} of {invoice['tenant']} is overdue",
                f"it was due on {invoice['due_on']}", link(f"/invoices/{invoice['number']}"),
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: str(one["tone"]))


def _matter(tone: str, what: str, more: str, href: str) -> dict[str, Any]:
    return {"tone": tone, "what": what, "more": more, "href": href}
