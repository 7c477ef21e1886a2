"""Everything that there is in the console. A page or an action that is not here cannot be reached."""

from starlette.responses import Response

from sublet.console import account, live, oidc, people_pages, signing_in
from sublet.console.operator import leases, overview
from sublet.console.operator.acting import act_for, end_acting
from sublet.console.page import Action, For, Page
from sublet.console.tenant import contents as tenant
from sublet.console.tenant import home
from sublet.console.visit import Visit
from sublet.tenants.person import Right


async def show_home(visit: Visit) -> Response:
    """Show the first page of whoever comes: the fleet's, or the tenant's."""
    return await (overview.show(visit) if visit.tenant is None else home.show(visit))


PAGES: tuple[Page, ...] = (
    Page(path="/", title="Overview", audience=For.BOTH, show=show_home, group="Now"),
    # ── of the operator ──
    Page(path="/leases", title="Leases", audience=For.OPERATOR, show=leases.show, group="Now"),
    # ── of a tenant ──
    *tenant.PAGES,
    # ── of people ──
    Page(path="/people", title="People", audience=For.BOTH, show=people_pages.show,
         needs=Right.PEOPLE, group="Account"),
    Page(path="/changes", title="Changes", audience=For.BOTH, show=people_pages.show_changes,
         group="Account"),
    Page(path="/account", title="Your account", audience=For.BOTH, show=account.show,
         group="Account"),
    Page(path="/events", title="What changes", audience=For.BOTH, show=live.show_events,
         walks=False),
    # ── of anybody ──
    Page(path="/sign-in", title="Sign in", audience=For.ANYBODY, show=signing_in.show_sign_in),
    Page(path="/oidc", title="Sign in elsewhere", audience=For.ANYBODY, show=oidc.go_there, walks=False),
    Page(path="/oidc/back", title="Back from there", audience=For.ANYBODY, show=oidc.come_back, walks=False),
    Page(path="/code", title="One more step", audience=For.ANYBODY, show=signing_in.show_code),
    Page(path="/welcome/{token}", title="Welcome", audience=For.ANYBODY,
         show=signing_in.show_welcome, example={"token": "invitation"}),
)  # fmt: skip

ACTIONS: tuple[Action, ...] = (
    # ── of the operator ──
    Action(path="/act-for", name="session.act_for", audience=For.OPERATOR, act=act_for),
    Action(path="/act-for/end", name="session.act_for.end", audience=For.TENANT, act=end_acting),
    # ── of a tenant ──
    *tenant.ACTIONS,
    # ── of people ──
    Action(path="/people/invite", name="person.invite", audience=For.BOTH, needs=Right.PEOPLE,
           act=people_pages.invite),
    Action(path="/invitations/{invitation_id}/revoke", name="person.invite.revoke",
           audience=For.BOTH, needs=Right.PEOPLE, act=people_pages.revoke_invitation,
           example={"invitation_id": "invitation"}),
    Action(path="/people/{person_id}", name="person.change", audience=For.BOTH,
           needs=Right.PEOPLE, act=people_pages.change, example={"person_id": "person"}),
    Action(path="/account/password", name="account.password", audience=For.BOTH,
           act=account.change_password,
           secret=frozenset({"password", "new_password", "new_password_again"})),
    Action(path="/account/codes", name="account.codes.begin", audience=For.BOTH,
           act=account.begin_codes, secret=frozenset({"password"}), recorded=False),
    Action(path="/account/codes/confirm", name="account.codes", audience=For.BOTH,
           act=account.confirm_codes, secret=frozenset({"secret", "code"})),
    Action(path="/account/codes/end", name="account.codes.end", audience=For.BOTH,
           act=account.end_codes, secret=frozenset({"password"})),
    Action(path="/account/sessions/end", name="account.sessions.end", audience=For.BOTH,
           act=account.end_others),
    # ── of anybody ──
    Action(path="/sign-in", name="sign_in", audience=For.ANYBODY, act=signing_in.sign_in,
           recorded=False),
    Action(path="/code", name="sign_in.code", audience=For.ANYBODY, act=signing_in.enter_code,
           recorded=False),
    Action(path="/sign-out", name="sign_out", audience=For.ANYBODY, act=signing_in.sign_out,
           recorded=False),
    Action(path="/welcome/{token}", name="person.accept", audience=For.ANYBODY,
           act=signing_in.accept, secret=frozenset({"password", "password_again"}),
           example={"token": "invitation"}),
)  # fmt: skip
