"""Everything that there is in the console. A page or an action that is not here cannot be reached."""

from starlette.responses import Response

from sublet.console import account, live, oidc, people_pages, signing_in
from sublet.console.operator import fleet, leases, market, money, overview
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
    Page(path="/fleet", title="Fleet", audience=For.OPERATOR, show=fleet.show, group="Now"),
    Page(path="/fleet/{pool}", title="Pool", audience=For.OPERATOR, show=fleet.show_pool,
         example={"pool": "pool"}),
    Page(path="/leases", title="Leases", audience=For.OPERATOR, show=leases.show, group="Now"),
    Page(path="/leases/{lease_id}", title="Lease", audience=For.OPERATOR, show=leases.show_one,
         example={"lease_id": "lease"}),
    Page(path="/reclaims", title="Reclaims", audience=For.OPERATOR, show=leases.show_reclaims,
         group="Now"),
    Page(path="/reclaims/{pool}", title="A reclaim", audience=For.OPERATOR,
         show=leases.show_reclaim, example={"pool": "reclaim"}),
    Page(path="/models", title="Models", audience=For.OPERATOR, show=market.show_models,
         group="Now"),
    Page(path="/surplus", title="Surplus", audience=For.OPERATOR, show=market.show_surplus,
         group="Sell"),
    Page(path="/market", title="Market", audience=For.OPERATOR, show=market.show_market,
         group="Sell"),
    Page(path="/contracts", title="Contracts", audience=For.OPERATOR, show=leases.show_contracts,
         group="Sell"),
    Page(path="/tenants", title="Tenants", audience=For.OPERATOR, show=money.show_tenants,
         group="Sell"),
    Page(path="/tenants/{tenant_id}", title="Tenant", audience=For.OPERATOR,
         show=money.show_tenant, example={"tenant_id": "tenant"}),
    Page(path="/money", title="Money", audience=For.OPERATOR, show=money.show, group="Money"),
    Page(path="/invoices", title="Invoices", audience=For.OPERATOR, show=money.show_invoices,
         group="Money"),
    Page(path="/invoices/{number}", title="Invoice", audience=For.OPERATOR,
         show=money.show_invoice, example={"number": "invoice"}),
    Page(path="/invoices/{number}/pdf", title="Invoice as PDF", audience=For.OPERATOR,
         show=money.show_pdf, walks=False, example={"number": "invoice"}),
    Page(path="/charges", title="Charges", audience=For.OPERATOR, show=money.show_charges,
         group="Money"),
    Page(path="/charges/{usage_id}", title="A charge", audience=For.OPERATOR,
         show=money.show_charge, example={"usage_id": "charge"}),
    Page(path="/ledger", title="Ledger", audience=For.OPERATOR, show=money.show_ledger,
         group="Money"),
    Page(path="/ledger/{account}", title="Account", audience=For.OPERATOR,
         show=money.show_account, example={"account": "account"}),
    Page(path="/returns", title="Returns", audience=For.OPERATOR, show=market.show_returns,
         group="Money"),
    Page(path="/stress", title="Stress", audience=For.OPERATOR, show=market.show_stress,
         group="Money"),
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
    Action(path="/fleet/{pool}", name="pool.policy", audience=For.OPERATOR, needs=Right.RUN,
           act=fleet.set_policy, example={"pool": "pool"}),
    Action(path="/leases/{lease_id}/end", name="lease.end", audience=For.OPERATOR,
           needs=Right.RUN, act=leases.end, example={"lease_id": "lease"}),
    Action(path="/models/serve", name="model.serve", audience=For.OPERATOR, needs=Right.RUN,
           act=market.serve_model),
    Action(path="/prices", name="price.set", audience=For.OPERATOR, needs=Right.RUN,
           act=market.set_price),
    Action(path="/tenants", name="tenant.create", audience=For.OPERATOR, needs=Right.RUN,
           act=money.create_tenant),
    Action(path="/tenants/{tenant_id}/credit", name="wallet.credit", audience=For.OPERATOR,
           needs=Right.MONEY, act=money.credit, example={"tenant_id": "tenant"}),
    Action(path="/invoices/{number}/paid", name="invoice.paid", audience=For.OPERATOR,
           needs=Right.MONEY, act=money.pay_invoice, example={"number": "invoice"}),
    Action(path="/audit", name="audit.run", audience=For.OPERATOR, act=money.run_audit),
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
