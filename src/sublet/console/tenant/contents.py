"""What a tenant's half of the console consists of; `console/contents.py` takes it into its table."""

from sublet.console.page import Action, For, Page
from sublet.console.tenant import billing, keys, leases, models, playground, renting, status, usage
from sublet.tenants.person import Right

PAGES: tuple[Page, ...] = (
    Page(path="/playground", title="Playground", audience=For.TENANT, needs=Right.USE,
         show=playground.show, group="Use"),
    Page(path="/rent", title="Lease GPUs", audience=For.TENANT, show=renting.show, group="Use"),
    Page(path="/rent/quotes/{quote_id}", title="A quote", audience=For.TENANT,
         show=renting.show_quote, example={"quote_id": "quote"}),
    Page(path="/your-leases", title="Your leases", audience=For.TENANT, show=leases.show,
         group="Use"),
    Page(path="/your-leases/{lease_id}", title="Lease", audience=For.TENANT, show=leases.show_one,
         example={"lease_id": "lease"}),
    Page(path="/your-leases/{lease_id}/logs", title="Log", audience=For.TENANT,
         show=leases.show_logs, walks=False, example={"lease_id": "lease"}),
    Page(path="/your-models", title="Your models", audience=For.TENANT, show=models.show,
         group="Use"),
    Page(path="/batches", title="Batches", audience=For.TENANT, show=models.show_batches,
         group="Use"),
    Page(path="/files", title="Files", audience=For.TENANT, show=models.show_files, group="Use"),
    Page(path="/keys", title="Keys", audience=For.TENANT, show=keys.show, group="Use"),
    Page(path="/usage", title="Usage", audience=For.TENANT, show=usage.show, group="Money"),
    Page(path="/budgets", title="Budgets", audience=For.TENANT, show=usage.show_budgets,
         group="Money"),
    Page(path="/billing", title="Billing", audience=For.TENANT, show=billing.show, group="Money"),
    Page(path="/billing/{number}", title="Invoice", audience=For.TENANT,
         show=billing.show_invoice, example={"number": "invoice"}),
    Page(path="/billing/{number}/pdf", title="Invoice as PDF", audience=For.TENANT,
         show=billing.show_pdf, walks=False, example={"number": "invoice"}),
    Page(path="/status", title="Status", audience=For.TENANT, show=status.show, group="Now"),
)  # fmt: skip

ACTIONS: tuple[Action, ...] = (
    # What it asks is the person's own, and what it costs is on record as every charge.
    Action(path="/playground/chat", name="playground.chat", audience=For.TENANT, needs=Right.USE,
           act=playground.chat, recorded=False),
    Action(path="/keys", name="key.create", audience=For.TENANT, needs=Right.MANAGE,
           act=keys.create),
    Action(path="/keys/limits", name="key.limit", audience=For.TENANT, needs=Right.MANAGE,
           act=keys.set_limit),
    Action(path="/keys/limits/remove", name="key.limit.remove", audience=For.TENANT,
           needs=Right.MANAGE, act=keys.remove_limit),
    Action(path="/keys/{key_id}/rotate", name="key.rotate", audience=For.TENANT,
           needs=Right.MANAGE, act=keys.rotate, example={"key_id": "key"}),
    Action(path="/keys/{key_id}/revoke", name="key.revoke", audience=For.TENANT,
           needs=Right.MANAGE, act=keys.revoke, example={"key_id": "key"}),
    Action(path="/rent/quote", name="quote.create", audience=For.TENANT, needs=Right.USE,
           act=renting.quote),
    Action(path="/rent/quotes/{quote_id}/accept", name="quote.accept", audience=For.TENANT,
           needs=Right.USE, act=renting.accept, example={"quote_id": "quote"}),
    Action(path="/your-leases/{lease_id}/end", name="lease.end", audience=For.TENANT,
           needs=Right.USE, act=leases.end, example={"lease_id": "lease"}),
    Action(path="/your-models/deploy", name="model.deploy", audience=For.TENANT,
           needs=Right.MANAGE, act=models.deploy),
    Action(path="/your-models/undeploy", name="model.undeploy", audience=For.TENANT,
           needs=Right.MANAGE, act=models.undeploy),
    Action(path="/budgets", name="budget.set", audience=For.TENANT, needs=Right.MANAGE,
           act=usage.put_budget),
    Action(path="/budgets/remove", name="budget.remove", audience=For.TENANT,
           needs=Right.MANAGE, act=usage.remove_budget),
)  # fmt: skip
