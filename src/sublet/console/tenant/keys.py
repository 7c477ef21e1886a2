"""Keys: made, shown once, limited, rotated and revoked."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from starlette.responses import Response

from sublet.console.visit import Visit
from sublet.core.errors import Invalid, NotFound
from sublet.tenants.limit import LimitKind

LIFETIMES: Final[Mapping[str, timedelta]] = {
    "30 days": timedelta(days=30), "90 days": timedelta(days=90), "a year": timedelta(days=365),
}  # fmt: skip
KINDS: Final[Mapping[LimitKind, str]] = {
    LimitKind.REQUESTS: "requests a minute",
    LimitKind.TOKENS: "tokens a minute",
    LimitKind.STREAMS: "answers at a time",
    LimitKind.DAY: "USD a day",
    LimitKind.MONTH: "USD a month",
    LimitKind.LIFETIME: "USD in all",
}


async def show(visit: Visit) -> Response:
    """List keys with their limits; those that are over only when asked for."""
    keys = (await visit.api.get("/v1/keys"))["items"]
    limits = (await visit.api.get("/v1/limits"))["items"]
    now = visit.site.ground.clock.now()
    for key in keys:
        key["state"] = _state(key, now)
        key["limits"] = [one for one in limits if one["key_id"] == key["id"]]
    over = [key for key in keys if key["state"] != "active"]
    everything = visit.asked("all") == "1"
    return visit.page(
        "tenant/keys.html",
        title="Keys",
        keys=[key for key in reversed(keys) if everything or key["state"] == "active"],
        active=[key for key in keys if key["state"] == "active"],
        over=len(over),
        everything=everything,
        shared=[one for one in limits if one["key_id"] is None],
        kinds=KINDS,
        lifetimes=list(LIFETIMES),
        gateway=visit.site.ground.config.gateway_url,
    )


def _state(key: Mapping[str, Any], now: datetime) -> str:
    if key["revoked_at"] is not None:
        return "revoked"
    over = key["expires_at"] is not None and datetime.fromisoformat(key["expires_at"]) <= now
    return "expired" if over else "active"


async def create(visit: Visit) -> Response:
    """Make a key, and show its secret this once."""
    made = await visit.api.post(
        "/v1/keys",
        {
            "name": visit.must("name"),
            "expires_at": _expiry(visit),
            "sigv4": visit.said("kind") == "sigv4",
        },
    )
    if (amount := visit.said("amount")) is not None:
        await _limit(visit, made["id"], visit.must("limit_kind"), amount)
    visit.note(subject=made["name"], after=_told(made))
    return _made(visit, made, before=None)


def _expiry(visit: Visit) -> datetime | None:
    """Raises Invalid: it is none that is offered."""
    said = visit.said("lifetime")
    if said is None:
        return None
    if said not in LIFETIMES:
        raise Invalid("lifetime: choose one of those that are offered")
    return visit.site.ground.clock.now() + LIFETIMES[said]


def _made(visit: Visit, made: Mapping[str, Any], *, before: Mapping[str, Any] | None) -> Response:
    return visit.page(
        "tenant/key_made.html", title="A new key", key=made, before=before,
        gateway=visit.site.ground.config.gateway_url,
    )  # fmt: skip


def _told(key: Mapping[str, Any]) -> dict[str, Any]:
    return {name: key[name] for name in ("id", "name", "hint", "expires_at")}


async def _find(visit: Visit) -> dict[str, Any]:
    """Raises NotFound: this tenant has no such key."""
    wanted = visit.part("key_id")
    for key in (await visit.api.get("/v1/keys"))["items"]:
        if key["id"] == wanted:
            return dict(key)
    raise NotFound(f"there is no key {wanted[:40]}")


async def rotate(visit: Visit) -> Response:
    """Make a key as the old one is, with its limits and tags; both work until the old one is revoked."""
    old = await _find(visit)
    now = visit.site.ground.clock.now()
    if _state(old, now) == "revoked":
        raise Invalid("this key was revoked: make a new one")
    expires_at = None
    if old["expires_at"] is not None:  # as long again as that was good for
        made_at, over_at = (datetime.fromisoformat(old[k]) for k in ("created_at", "expires_at"))
        expires_at = now + (over_at - made_at)
    made = await visit.api.post(
        "/v1/keys",
        {
            "name": old["name"],
            "expires_at": expires_at,
            "sigv4": old["access_key_id"] is not None,
        },
    )
    for one in (await visit.api.get("/v1/limits"))["items"]:
        if one["key_id"] == old["id"] and one["set_by"] == "tenant":
            await _limit(visit, made["id"], one["kind"], one["amount"])
    tags = (await visit.api.get(f"/v1/tags/{old['id']}"))["tags"]
    if tags:
        await visit.api.put(f"/v1/tags/{made['id']}", {"tags": tags})
    visit.note(subject=old["name"], before=_told(old), after=_told(made))
    return _made(visit, made, before=old)


async def revoke(visit: Visit) -> Response:
    old = await _find(visit)
    await visit.api.delete(f"/v1/keys/{old['id']}")
    visit.note(subject=old["name"], before=_told(old), after={"revoked": True})
    return visit.go_to("/keys", f"{old['name']} is revoked: the next call with it is refused.")


async def set_limit(visit: Visit) -> Response:
    kind, amount = visit.must("limit_kind"), visit.must("amount")
    key_id = visit.said("key_id")
    await _limit(visit, key_id, kind, amount)
    visit.note(after={"key": key_id, "kind": kind, "amount": amount})
    return visit.go_to("/keys", "The limit holds from now on.")


async def _limit(visit: Visit, key_id: str | None, kind: str, amount: str) -> None:
    await visit.api.put("/v1/limits", {"key_id": key_id, "kind": kind, "amount": amount})


async def remove_limit(visit: Visit) -> Response:
    kind, key_id = visit.must("limit_kind"), visit.said("key_id")
    await visit.api.delete("/v1/limits", kind=kind, key_id=key_id)
    visit.note(before={"key": key_id, "kind": kind})
    return visit.go_to("/keys", "The limit is gone.")
