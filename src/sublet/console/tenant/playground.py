"""The playground: a chat with any model, through the gateway as any other call, and so billed as one.

It calls with a key of the person's session. Nobody keeps its secret: it is made again from the
session each time, holds as long as the session does, and is in the list of keys, where it can be
revoked as every other.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.responses import Response, StreamingResponse

from sublet.console.visit import Visit
from sublet.core.db import Tx
from sublet.core.errors import Invalid, Unavailable
from sublet.tenants import store as tenants
from sublet.tenants.tenant import PREFIX

_LOOK_SECONDS: Final = 5.0
_AWAY: Final = "the gateway does not answer now; what runs is not lost, try again in a moment"


async def show(visit: Visit) -> Response:
    """Show the chat; where there is nothing to chat with, say why."""
    models: list[dict[str, Any]] = []
    trouble = None
    try:
        models = await _models(visit)
    except Unavailable as error:
        trouble = str(error)
    return visit.page(
        "tenant/playground.html", title="Playground", models=models, trouble=trouble,
        gateway=visit.site.ground.config.gateway_url, asked=visit.asked("model"),
    )  # fmt: skip


async def _models(visit: Visit) -> list[dict[str, Any]]:
    """Return what this tenant may chat with, as the gateway sells it.

    Raises:
        Unavailable: the gateway did not answer.
    """
    import httpx  # noqa: PLC0415 -- slow to load, and for this page alone

    headers = {"authorization": f"Bearer {await _key(visit)}"}
    address = f"{visit.site.ground.config.gateway_http_url}/v1/models"
    try:
        async with httpx.AsyncClient(timeout=_LOOK_SECONDS, trust_env=False) as client:
            answer = await client.get(address, headers=headers)
    except httpx.HTTPError:
        raise Unavailable(_AWAY) from None
    if answer.status_code != 200:
        raise Unavailable(answer.json().get("error", {}).get("message", _AWAY))
    return sorted(
        (
            {"id": one["id"], **one["sublet"]}
            for one in answer.json()["data"]
            if one["sublet"]["prices"] is not None
        ),
        key=lambda one: (one["state"] != "ready", one["id"]),
    )


async def chat(visit: Visit) -> Response:
    """Ask the model, and hand on its answer as it comes.

    What goes wrong on the way comes as an event, too: `{"error": {"message": …}}`.
    """
    asked = _asked(visit)
    key = await _key(visit)
    address = f"{visit.site.ground.config.gateway_http_url}/v1/chat/completions"

    async def answer() -> AsyncIterator[bytes]:
        import httpx  # noqa: PLC0415 -- as above

        headers = {"authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(10.0, read=None)  # the gateway has its own
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
                client.stream("POST", address, json=asked, headers=headers) as came,
            ):
                if came.status_code == 200:
                    async for part in came.aiter_raw():
                        yield part
                else:
                    yield b"data: " + b" ".join((await came.aread()).split()) + b"\n\n"
        except httpx.HTTPError:
            yield b"data: " + json.dumps({"error": {"message": _AWAY}}).encode() + b"\n\n"

    return StreamingResponse(answer(), media_type="text/event-stream")


def _asked(visit: Visit) -> dict[str, Any]:
    """Return what the form asks for, in the words of the gateway, which judges it.

    Raises:
        Invalid: the form is not of this page.
    """
    asked: dict[str, Any] = {
        "model": visit.must("model"),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    numbers = {"temperature": float, "max_tokens": int}
    try:
        asked["messages"] = json.loads(visit.must("messages"))
        for name, read in numbers.items():
            if (said := visit.said(name)) is not None:
                asked[name] = read(said)
    except ValueError:
        raise Invalid("messages, temperature, max_tokens: these are no such values") from None
    return asked


async def _key(visit: Visit) -> str:
    """Return the key of this session, and see to it that it is one."""
    who, tenant, ground = visit.who, visit.one_tenant, visit.site.ground
    told = b"playground" + who.digest + tenant.id.bytes
    made = hmac.new(ground.signing_key.encode(), told, hashlib.sha256).digest()
    key = PREFIX + base64.urlsafe_b64encode(made).rstrip(b"=").decode()
    name = f"playground of {who.person.name}"[:100]

    def note(tx: Tx) -> None:
        tenants.create_key(
            tx, tenant.id, name, now=ground.clock.now(), expires_at=who.expires_at, key=key
        )

    await visit.db(note)
    return key
