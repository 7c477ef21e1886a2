"""The console as a web app: who may open what, what is recorded, and how it fails."""

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from psycopg import DataError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sublet.console.api import ApiError
from sublet.console.contents import ACTIONS, PAGES
from sublet.console.live import Watch
from sublet.console.page import BASE, Action, For, Page
from sublet.console.view import KINDS, asset, environment
from sublet.console.visit import Ground, Site, Visit, redacted, tenant_of
from sublet.core.errors import (
    Conflict,
    Invalid,
    NotFound,
    Refused,
    SubletError,
    Unauthorized,
    Unavailable,
)
from sublet.core.ids import new_id
from sublet.tenants import people
from sublet.tenants.person import Session

log = logging.getLogger(__name__)

_STATUSES: Final[Mapping[type[SubletError], int]] = {
    Invalid: 422, Unauthorized: 401, NotFound: 404, Conflict: 409, Refused: 409, Unavailable: 503,
}  # fmt: skip
_TITLES: Final = {
    401: "Please sign in", 402: "Not enough money", 403: "Not for you", 404: "Not found",
    405: "Not found", 409: "That was refused", 422: "That cannot be", 429: "Not so fast",
    503: "Back in a moment",
}  # fmt: skip
_FOREVER: Final = "public, max-age=31536000, immutable"

Endpoint = Callable[[Request], Awaitable[Response]]


class Forbidden(SubletError):
    """Signed in, and not for this."""

    code = "forbidden"


def build_console(ground: Ground, api: ASGIApp) -> Starlette:
    """Return the console over an instance's API, to be mounted at `/console`."""
    site = Site(
        ground=ground,
        api=api,
        templates=environment(),
        pages=PAGES,
        actions=ACTIONS,
        watch=Watch(ground.db),
    )
    routes = [Route("/static/{version}/{name}", _static)]
    routes += [Route(page.path, _opened(site, page)) for page in PAGES]
    routes += [Route(act.path, _acted(site, act), methods=["POST"]) for act in ACTIONS]
    routes.append(Route("/{rest:path}", _opened(site, _NOTHING)))

    async def failed(request: Request, error: Exception) -> Response:
        visit = Visit(site=site, request=request, session=None)
        return _with_headers(site, _failure(visit, error))

    handlers: dict[Any, Any] = {HTTPException: failed, Exception: failed}
    return Starlette(routes=routes, exception_handlers=handlers)


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    try:
        content = asset(name)
    except FileNotFoundError:
        return JSONResponse({"error": "there is no such file"}, 404)
    headers = {"cache-control": _FOREVER, "x-content-type-options": "nosniff"}
    return Response(content, headers=headers, media_type=KINDS[name.rpartition(".")[2]])


async def _nothing(_: Visit) -> Response:
    raise NotFound("there is no such page")


_NOTHING: Final = Page(path="/", title="Not found", audience=For.ANYBODY, show=_nothing)


def _opened(site: Site, page: Page) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site=site, request=request, session=None)
        try:
            await _recognise(visit)
            if not visit.may(page):
                return _with_headers(site, _turned_away(visit, page))
            answer = await page.show(visit)
        except Exception as error:  # noqa: BLE001 -- each becomes a page that says what was wrong
            answer = _failure(visit, error)
        return _with_headers(site, answer)

    return endpoint


def _acted(site: Site, action: Action) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        visit = Visit(site=site, request=request, session=None)
        try:
            await _recognise(visit)
            visit.form = await request.form(max_files=4, max_fields=200)
            _check_origin(visit)
            if not visit.may(action):
                return _with_headers(site, _turned_away(visit, action))
            answer = await _recorded(visit, action)
        except Exception as error:  # noqa: BLE001 -- as above
            answer = _failure(visit, error)
        return _with_headers(site, answer)

    return endpoint


async def _recorded(visit: Visit, action: Action) -> Response:
    """Act, with what is asked for on record before, and what became of it after."""
    if not action.recorded:
        return await action.act(visit)
    change = new_id()
    asked = redacted(visit.form, action.secret)
    subject = " ".join(str(part) for part in visit.request.path_params.values())

    async def note(event: str, after: object) -> None:
        def write(tx: Any) -> None:
            people.note_change(
                tx, change, event,
                person_id=None if visit.session is None else visit.session.person.id,
                tenant_id=None if visit.tenant is None else visit.tenant.id,
                action=action.name, subject=str(visit.notes.get("subject", subject)),
                before=visit.notes.get("before"), after=after, now=visit.site.ground.clock.now(),
            )  # fmt: skip

        await visit.db(write)

    await note("asked", asked)
    try:
        answer = await action.act(visit)
    except SubletError as error:
        await note("refused", {"error": str(error)})
        raise
    await note("done", visit.notes.get("after"))
    return answer


async def _recognise(visit: Visit) -> None:
    """Find out who comes, by their cookie."""
    token = visit.request.cookies.get(visit.site.cookie)
    if token is None:
        return
    ground = visit.site.ground

    def find() -> Session | None:
        with ground.db.transaction("console.session") as tx:
            return people.find_session(tx, token, now=ground.clock.now())

    visit.session = await run_in_threadpool(find)
    visit.tenant = await tenant_of(visit.site, visit.session)


def _check_origin(visit: Visit) -> None:
    """Raises Forbidden: another site sent this form, or it is of a session that is over."""
    headers = visit.request.headers
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Forbidden("this form was sent by another site")
    origin = headers.get("origin")
    if origin not in {None, "null"}:
        hosts = {headers.get("host"), urlsplit(visit.site.ground.config.public_url).netloc}
        if urlsplit(origin).netloc not in hosts:
            raise Forbidden("this form was sent by another site")
    if visit.session is not None:
        sent = headers.get("x-token") or str(visit.form.get("token", ""))
        if not hmac.compare_digest(sent.encode("utf-8", "replace"), visit.token.encode()):
            raise Forbidden("this form is of another sign-in; open the page again")


def _turned_away(visit: Visit, what: Page | Action) -> Response:
    """Send to the sign-in; or say who may, where somebody is signed in who may not."""
    if visit.session is None or not visit.session.confirmed:
        if isinstance(what, Action):
            return visit.page("error.html", status=401, title=_TITLES[401],
                              message="You are signed in no longer.", retry=None, hits=[])  # fmt: skip
        address = visit.request.url
        wanted = address.path + (f"?{address.query}" if address.query else "")
        query = "" if wanted in {BASE, f"{BASE}/"} else "?" + urlencode({"next": wanted})
        return RedirectResponse(f"{BASE}/sign-in{query}", 303)
    return visit.page("no_right.html", status=403, title=_TITLES[403], what=what)


def _failure(visit: Visit, error: Exception) -> Response:
    """Say what was wrong, and what can be done."""
    hits: list[dict[str, Any]] = []
    match error:
        case ApiError():
            status, message, hits = error.status, str(error), error.hits
        case Forbidden():
            status, message = 403, str(error)
        case SubletError():
            kinds = [kind for kind in type(error).__mro__ if kind in _STATUSES]
            status, message = _STATUSES[kinds[0]] if kinds else 500, str(error)
        case HTTPException():
            status, message = error.status_code, str(error.detail)
        case DataError():
            status, message = 422, "a value is out of range or has characters that cannot be kept"
        case _:
            log.error("console.failed", extra={"path": visit.request.url.path}, exc_info=error)
            status, message = 500, "Sublet failed; its log says why. Nothing was half done."
    title = _TITLES.get(status, "Something went wrong")
    again = visit.request.method == "GET" and status >= 500
    return visit.page(
        "error.html", status=status, title=title, message=message[:1].upper() + message[1:],
        retry=str(visit.request.url.path) if again else None, hits=hits,
    )  # fmt: skip


def _with_headers(site: Site, answer: Response) -> Response:
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    answer.headers.setdefault("content-security-policy", policy)
    answer.headers.setdefault("cache-control", "no-store")
    answer.headers["x-content-type-options"] = "nosniff"
    answer.headers["x-frame-options"] = "DENY"
    answer.headers["referrer-policy"] = "same-origin"
    answer.headers["cross-origin-opener-policy"] = "same-origin"
    answer.headers["permissions-policy"] = "camera=(), geolocation=(), microphone=()"
    if site.secure:
        answer.headers["strict-transport-security"] = "max-age=31536000"
    return answer
