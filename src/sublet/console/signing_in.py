"""Signing in and out; the first account, and every other one."""

from collections.abc import Mapping
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from sublet.console.page import BASE
from sublet.console.visit import Visit
from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.tenants import passwords, people
from sublet.tenants.person import LONGEST, Person, checked_password

_WRONG: Final = "That is not the right address and password."
_TOO_MANY: Final = "Too many sign-ins have failed. Wait a quarter of an hour, and try again."


def safe(address: str) -> str:
    """Return where to go after a sign-in: a page of the console, and nothing else."""
    inside = address == BASE or address.startswith((f"{BASE}/", f"{BASE}?"))
    return address if inside and "\\" not in address and "//" not in address else f"{BASE}/"


async def show_sign_in(visit: Visit) -> Response:
    if visit.session is not None and visit.session.confirmed:
        return RedirectResponse(safe(visit.asked("next")), 303)
    if not await visit.db(people.any_people):
        return visit.page("first.html", title="Welcome")
    return _form(visit)


def _form(
    visit: Visit, *, status: int = 200, error: str | None = None, email: str = ""
) -> Response:
    return visit.page(
        "sign_in.html", status=status, title="Sign in", error=error, email=email,
        next=safe(visit.said("next") or visit.asked("next")),
        oidc=visit.site.ground.config.oidc_issuer,
    )  # fmt: skip


async def sign_in(visit: Visit) -> Response:
    email, password = (visit.said("email") or "").lower(), str(visit.form.get("password", ""))
    subjects = {"email": email, "address": _address(visit)}
    now = visit.site.ground.clock.now()
    if await visit.db(lambda tx: people.too_many_failures(tx, subjects, now=now)):
        return _form(visit, status=429, error=_TOO_MANY, email=email)
    found = await visit.db(lambda tx: people.find(tx, email))
    person, password_hash = found if found is not None else (None, None)
    fits = await run_in_threadpool(passwords.fits, password, password_hash)
    if person is None or not fits or person.disabled_at is not None:
        await visit.db(lambda tx: people.note_failure(tx, subjects, now=now))
        return _form(visit, status=422, error=_WRONG, email=email)
    if not person.asks_code:
        await visit.db(lambda tx: people.forgive(tx, email, now=now))
    answer = RedirectResponse(
        f"{BASE}/code?{_next(visit)}" if person.asks_code else safe(visit.said("next") or ""), 303
    )
    await begin(visit, person, answer, confirmed=not person.asks_code)
    return answer


def _next(visit: Visit) -> str:
    return f"next={safe(visit.said('next') or '')}"


async def begin(visit: Visit, person: Person, answer: Response, *, confirmed: bool = True) -> None:
    """Open a session and hand its cookie out with `answer`; one that was open in its place ends."""
    now = visit.site.ground.clock.now()

    def replace(tx: Tx) -> str:
        if visit.session is not None:
            people.end_session(tx, visit.session.digest)
        agent = visit.request.headers.get("user-agent", "")
        return people.open_session(tx, person, confirmed=confirmed, agent=agent, now=now)

    token = await visit.db(replace)
    answer.set_cookie(
        visit.site.cookie, token, max_age=int(LONGEST.total_seconds()), path="/", httponly=True,
        samesite="lax", secure=visit.site.secure,
    )  # fmt: skip


async def show_code(visit: Visit) -> Response:
    if visit.session is None:
        return RedirectResponse(f"{BASE}/sign-in", 303)
    if visit.session.confirmed:
        return RedirectResponse(safe(visit.asked("next")), 303)
    return visit.page(
        "code.html", title="One more step", error=None, next=safe(visit.asked("next"))
    )


async def enter_code(visit: Visit) -> Response:
    """Take the one-time code that comes after the password."""
    if visit.session is None:
        return RedirectResponse(f"{BASE}/sign-in", 303)
    person = visit.session.person
    subjects = {"email": person.email, "address": _address(visit)}
    ground = visit.site.ground
    now = ground.clock.now()
    wanted = safe(visit.said("next") or "")

    def again(status: int, error: str) -> Response:
        return visit.page(
            "code.html", status=status, title="One more step", error=error, next=wanted
        )

    if await visit.db(lambda tx: people.too_many_failures(tx, subjects, now=now)):
        return again(429, _TOO_MANY)
    code = visit.said("code") or ""

    def take(tx: Tx) -> bool:
        sealed = people.get_code(tx, person.id)
        if sealed is None:
            return True
        secret = ground.vault.open(sealed, bound_to=f"person:{person.id}")
        step = passwords.step_of_code(secret, code, now=now)
        return step is not None and people.take_code(tx, person.id, step)

    if not await visit.db(take):
        await visit.db(lambda tx: people.note_failure(tx, subjects, now=now))
        return again(422, "That is not the code that the app shows now. Each counts once.")
    await visit.db(lambda tx: people.forgive(tx, person.email, now=now))
    answer = RedirectResponse(wanted, 303)
    await begin(visit, person, answer)
    return answer


async def sign_out(visit: Visit) -> Response:
    if visit.session is not None:
        digest = visit.session.digest
        await visit.db(lambda tx: people.end_session(tx, digest))
    answer = RedirectResponse(f"{BASE}/sign-in", 303)
    answer.delete_cookie(visit.site.cookie, path="/", secure=visit.site.secure, httponly=True)
    return answer


# ── invitations ──────────────────────────────────────────────────────────────────────────


async def show_welcome(visit: Visit) -> Response:
    return await _welcome(visit, visit.part("token"))


async def _welcome(
    visit: Visit, token: str, *, status: int = 200, error: str | None = None,
    filled: Mapping[str, str] | None = None,
) -> Response:  # fmt: skip
    now = visit.site.ground.clock.now()
    invitation = await visit.db(lambda tx: people.get_invitation(tx, token, now=now))
    return visit.page(
        "welcome.html", status=status, title="Welcome to Sublet", invitation=invitation, error=error,
        token=token, filled=filled or {"email": "", "name": ""}, oidc=visit.site.ground.config.oidc_issuer,
    )  # fmt: skip


async def accept(visit: Visit) -> Response:
    """Make the account of an invitation, and sign in with it."""
    token, now = visit.part("token"), visit.site.ground.clock.now()
    filled = {name: visit.said(name) or "" for name in ("email", "name")}
    try:
        password = checked_password(str(visit.form.get("password", "")))
        if password != visit.form.get("password_again"):
            raise Invalid("the two passwords differ")
        hashed = await run_in_threadpool(passwords.hash_password, password)
        person = await visit.db(
            lambda tx: people.accept(
                tx, token, email=filled["email"], name=filled["name"], password_hash=hashed, now=now
            )
        )
    except NotFound:
        raise
    except (Invalid, Refused) as error:
        said = str(error)
        return await _welcome(
            visit, token, status=422, error=f"{said[:1].upper()}{said[1:]}.", filled=filled
        )
    visit.note(subject=person.email, after={"role": person.role, "tenant": str(person.tenant_id)})
    answer = visit.go_to("/", f"Welcome, {person.name}.")
    await begin(visit, person, answer)
    return answer


def _address(visit: Visit) -> str:
    client = visit.request.client
    return "unknown" if client is None else client.host
