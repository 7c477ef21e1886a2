"""What a new instance has from the start: keys, a house, a demo tenant, prices, a model."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from sublet.app.secrets import Secrets
from sublet.core.db import Tx
from sublet.core.errors import NotFound, Refused
from sublet.core.ids import derived_id
from sublet.core.money import Money, parse_amount
from sublet.invoices import dunning
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import scales
from sublet.market import service as pricing
from sublet.market import store as market
from sublet.market.notice import Step
from sublet.market.price import Tier, lease_sku
from sublet.models import catalogue
from sublet.models import store as model_store
from sublet.models.replica.recipe import load
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Tenant, TenantId, TenantKind

HOUSE: Final = "house"
DEMO: Final = "demo"
DEMO_CREDIT: Final = parse_amount("10")
DEMO_MODEL: Final = "gemma-3-270m"
# First list prices, USD a GPU-hour (of a CPU slot: an hour of a core), until the operator sets
# others. Interruptible is what others ask for spot against on-demand: about half.
# A GPU that an internal job may have to wait longer for is worth more to its tenant, and less to
# its owner: so much of the list price, from a notice on.
_FIRST_SCALE: Final = (
    Step(notice=timedelta(minutes=10), percent=105),
    Step(notice=timedelta(hours=1), percent=115),
    Step(notice=timedelta(hours=4), percent=130),
    Step(notice=timedelta(hours=12), percent=150),
)
_FIRST_PRICES: Final = {
    "cpu": {Tier.INTERRUPTIBLE: "0.03", Tier.ON_DEMAND: "0.06", Tier.RESERVED: "0.05"},
    "": {Tier.INTERRUPTIBLE: "1.20", Tier.ON_DEMAND: "2.40", Tier.RESERVED: "2.00"},
}


def open_accounts(tx: Tx, tenant: Tenant) -> None:
    """Open the accounts that a tenant pays from and to; again changes nothing.

    The house may go below zero: it owes itself for its replicas, and that is to be seen.
    """
    ledger.open_account(tx, tenant.wallet, prepaid=tenant.kind is TenantKind.CUSTOMER)
    ledger.open_account(tx, tenant.revenue, prepaid=False)


def top_up(tx: Tx, tenant: Tenant, amount: Money, *, payment: object, now: datetime) -> bool:
    """Credit a wallet with money that arrived, once for each `payment`; False if it was before."""
    bank = ledger.open_account(tx, "house:bank", prepaid=False)
    wallet = ledger.get_account(tx, tenant.wallet)
    transfer = Transfer(
        id=derived_id("payment", tenant.id, payment),
        debit_account=bank.id,
        credit_account=wallet.id,
        amount=amount,
        reason="payment",
        happened_at=now,
    )
    new = ledger.post(tx, transfer, now=now)
    if dunning.is_suspended(tx, tenant):
        dunning.hold_to_it(tx, tenant, now=now)
    return new


def first_prices(tx: Tx, pools: Sequence[str], *, now: datetime) -> None:
    """Price the leases, and the notices, of pools that have no price yet."""
    for pool in pools:
        new = False
        for tier, usd in _FIRST_PRICES.get(pool, _FIRST_PRICES[""]).items():
            sku = lease_sku(pool, tier)
            if market.find_price(tx, sku) is None:
                new = True
                with suppress(Refused):  # below its floor: not sold until the operator prices it
                    rate = market.usd_per_hour(usd)
                    pricing.set_price(tx, sku, rate, exception=None, now=now)
        if new and scales.find_scale(tx, pool, at=now) is None:
            scales.set_scale(tx, pool, _FIRST_SCALE, now=now)


def bootstrap(tx: Tx, secrets: Secrets, *, model: bool, now: datetime) -> Tenant:
    """Make what a new instance has; on one that has it, change nothing.

    Returns:
        the demo tenant.
    """
    house = tenants.find_tenant(tx, HOUSE) or tenants.create_tenant(
        tx, HOUSE, kind=TenantKind.HOUSE, now=now
    )
    open_accounts(tx, house)
    demo = tenants.find_tenant(tx, DEMO)
    if demo is None:
        demo = tenants.create_tenant(tx, DEMO, now=now)
        open_accounts(tx, demo)
        top_up(tx, demo, DEMO_CREDIT, payment="demo", now=now)
    keys: list[tuple[TenantId | None, str, str]] = [
        (None, "first operator key", secrets.operator_key),
        (demo.id, "demo key", secrets.tenant_key),
    ]
    for tenant_id, name, key in keys:
        tenants.create_key(tx, tenant_id, name, key=key, now=now)
    if model:
        catalogue.offer(tx, load(DEMO_MODEL), now=now)
    else:
        with suppress(NotFound):  # it was never offered
            model_store.set_wanted(tx, DEMO_MODEL, wanted=False)
    return demo


def get_house(tx: Tx) -> Tenant:
    """Raises NotFound: the instance was not bootstrapped."""
    house = tenants.find_tenant(tx, HOUSE)
    if house is None:
        raise NotFound("this database has no house tenant: start it with `sublet up` first")
    return house
