"""One request of one person: what a page or an action works with."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import quote, unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from sublet.config import Config
from sublet.console.api import Api
from sublet.console.page import BASE, Action, For, Page
from sublet.core.clock import Clock, steady_seconds
from sublet.core.db import Database, Tx
from sublet.core.errors import Invalid, NotFound
from sublet.core.vault import Vault
from sublet.tenants import store as tenants
from sublet.tenants.person import Right, Session
from sublet.tenants.tenant import Caller, KeyId, Role, Tenant, TenantId

if TYPE_CHECKING:
    from jinja2 import Environment

T = TypeVar("T")
SAID: Final = "sublet_said"  # the cookie with what a page says once
THEME: Final = "sublet_theme"
_THEMES: Final = frozenset({"light", "dark"})


class Ground(Protocol):
    """What the console stands on."""

    @property
    def config(self) -> Config: ...
    @property
    def db(self) -> Database: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def vault(self) -> Vault: ...
    @property
    def signing_key(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The console of one instance."""

    ground: Ground
    api: Any  # the API, as an ASGI app
    templates: "Environment"
    pages: tuple[Page, ...]
    actions: tuple[Action, ...]
    memory: dict[Hashable, tuple[asyncio.Lock, list[Any]]] = field(default_factory=dict)
    watch: object  # tells pages what changed: `live.Watch`

    @property
    def secure(self) -> bool:
        """Say whether browsers come by TLS, so that cookies may insist on it."""
        return self.ground.config.public_url.startswith("https://")

    @property
    def cookie(self) -> str:
        return "__Host-sublet_session" if self.secure else "sublet_session"


@dataclass(slots=True, kw_only=True)
class Visit:
    site: Site
    request: Request
    session: Session | None
    tenant: Tenant | None = None  # whose pages these are; None: the operator's
    form: FormData = field(default_factory=FormData)
    notes: dict[str, Any] = field(default_factory=dict)  # what is recorded of a change

    # ── who ──────────────────────────────────────────────────────────────────────────────

    @property
    def who(self) -> Session:
        assert self.session is not None
        return self.session

    @property
    def rights(self) -> frozenset[Right]:
        return frozenset() if self.session is None else self.session.rights

    @property
    def audience(self) -> For:
        return For.OPERATOR if self.tenant is None else For.TENANT

    def may(self, what: Page | Action) -> bool:
        """Say whether this person may open a page, or do something."""
        if what.audience is For.ANYBODY:
            return True
        if self.session is None or not self.session.confirmed:
            return False
        mine = what.audience in {For.BOTH, self.audience}
        return mine and (what.needs is None or what.needs in self.rights)

    @property
    def token(self) -> str:
        """Return what every form of this session carries: another site cannot know it."""
        if self.session is None:
            return ""
        key = self.site.ground.signing_key.encode()
        return hmac.new(key, b"form" + self.session.digest, hashlib.sha256).hexdigest()

    # ── what it asks ─────────────────────────────────────────────────────────────────────

    @property
    def api(self) -> Api:
        """The API as this person may use it: as the operator, or as the tenant."""
        role = Role.OPERATOR if self.tenant is None else Role.TENANT
        caller = Caller(
            key_id=KeyId(self.who.person.id),
            role=role,
            tenant=self.tenant,
            expires_at=self.who.expires_at,
        )
        return Api(self.site.api, caller)

    @property
    def one_tenant(self) -> Tenant:
        """Whose page this is, on a tenant's page."""
        assert self.tenant is not None
        return self.tenant

    async def db(self, work: Callable[[Tx], T]) -> T:
        """Do `work` in one transaction, beside the event loop."""

        def run() -> T:
            with self.site.ground.db.transaction("console") as tx:
                return work(tx)

        return await run_in_threadpool(run)

    async def remembered(self, key: Hashable, seconds: float, work: Callable[[Tx], T]) -> T:
        """Do `work` in a transaction, or return what it returned so lately, to whomever.

        For looks at many records that many people have open; never for what is one's own.
        """
        turns, known = self.site.memory.setdefault(key, (asyncio.Lock(), []))
        async with turns:
            now = steady_seconds()
            if not known or known[0][0] <= now:
                known[:] = [(now + seconds, await self.db(work))]
            found: T = known[0][1]
            return found

    def part(self, name: str) -> str:
        """Return a part of the path, such as the lease's id."""
        return str(self.request.path_params[name])

    def number(self, name: str) -> int:
        """Return a part of the path that is a number.

        Raises:
            NotFound: it is none, so nothing has it.
        """
        said = self.part(name)
        if not (said.isascii() and said.isdigit()):
            raise NotFound(f"there is nothing with the number {said}")
        return int(said)

    def asked(self, name: str, default: str = "") -> str:
        """Return a parameter of the address."""
        return self.request.query_params.get(name, default).strip()

    def said(self, name: str) -> str | None:
        """Return a field of the form; None: it was left empty, or is not there."""
        value = self.form.get(name)
        assert not isinstance(value, UploadFile)
        return (value or "").strip() or None

    def must(self, name: str) -> str:
        """Return a field of the form. Raises Invalid: it is empty."""
        value = self.said(name)
        if value is None:
            raise Invalid(f"{name.replace('_', ' ')}: must be filled in")
        return value

    def note(self, *, before: object = None, after: object = None, subject: str = "") -> None:
        """Say what a change was made to, what that was before, and what it is now."""
        told = {"before": before, "after": after, "subject": subject or None}
        self.notes |= {name: value for name, value in told.items() if value is not None}

    # ── what it answers ──────────────────────────────────────────────────────────────────

    def page(self, template: str, /, *, status: int = 200, **values: Any) -> Response:
        """Return a page made by a template."""
        html = self.site.templates.get_template(template).render(
            visit=self,
            here=self.request.url.path,
            navigation=self._navigation(),
            theme=self._theme(),
            flash=unquote(self.request.cookies.get(SAID, "")),
            unsafe=self.site.ground.config.unsafe_no_sandbox,
            now=self.site.ground.clock.now(),
            **values,
        )
        answer = HTMLResponse(html, status)
        if SAID in self.request.cookies:
            answer.delete_cookie(SAID, path=BASE)
        return answer

    def go_to(self, path: str, said: str | None = None) -> Response:
        """Send the browser to a page of the console, which says this once."""
        answer = RedirectResponse(f"{BASE}{path}", 303)
        if said is not None:
            answer.set_cookie(
                SAID, quote(said[:400]), max_age=60, path=BASE, httponly=True, samesite="lax",
                secure=self.site.secure,
            )  # fmt: skip
        return answer

    def _theme(self) -> str | None:
        theme = self.request.cookies.get(THEME)
        return theme if theme in _THEMES else None

    def _navigation(self) -> list[tuple[str, list[Page]]]:
        groups: dict[str, list[Page]] = {}
        for page in self.site.pages:
            if page.group is not None and self.may(page):
                groups.setdefault(page.group, []).append(page)
        return list(groups.items())


async def tenant_of(site: Site, session: Session | None) -> Tenant | None:
    """Return whose pages a session sees; None: the operator's."""
    if session is None or session.tenant_id is None:
        return None
    tenant_id: TenantId = session.tenant_id

    def load() -> Tenant:
        with site.ground.db.transaction("console") as tx:
            return tenants.get_tenant(tx, tenant_id)

    return await run_in_threadpool(load)


def redacted(form: Mapping[str, Any], secret: frozenset[str]) -> dict[str, Any]:
    """Return what is recorded of a form: no secret, and no file."""
    kept: dict[str, Any] = {}
    for name, value in form.items():
        if name == "token":
            continue
        hidden = name in secret or isinstance(value, UploadFile)
        kept[name] = "(not kept)" if hidden else str(value)[:2000]
    return kept
