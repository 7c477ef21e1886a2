"""Who may do what: keys that work, and all those that do not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, Refused, Unauthorized
from sublet.core.ids import new_id
from sublet.core.vault import Vault
from sublet.tenants import store
from sublet.tenants.tenant import PREFIX, KeyId, Role, TenantId, digest, new_key

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_key_speaks_for_its_tenant_and_an_operators_for_nobody(tx: Tx) -> None:
    acme = store.create_tenant(tx, "acme", now=NOON)
    made, secret = store.create_key(tx, acme.id, "laptop", now=NOON)
    _, operator = store.create_key(tx, None, "ops", now=NOON)
    caller = store.find_caller(tx, secret, now=NOON)
    assert (caller.key_id, caller.role, caller.tenant) == (made.id, Role.TENANT, acme)
    caller = store.find_caller(tx, operator, now=NOON)
    assert (caller.role, caller.tenant) == (Role.OPERATOR, None)


@pytest.mark.parametrize(
    "key", ["", "x", PREFIX, "sk-sublet-" + "A" * 43, "\x00", "\ud800", "é" * 10_000]
)
def test_a_key_that_nobody_made_is_unknown(tx: Tx, key: str) -> None:
    store.create_key(tx, None, "ops", now=NOON)
    with pytest.raises(Unauthorized, match="not known"):
        store.find_caller(tx, key, now=NOON)


def test_a_key_is_good_until_the_instant_it_expires(tx: Tx) -> None:
    _, secret = store.create_key(tx, None, "ops", now=NOON, expires_at=NOON + HOUR)
    just_before = NOON + HOUR - timedelta(microseconds=1)
    assert store.find_caller(tx, secret, now=just_before).expires_at == NOON + HOUR
    with pytest.raises(Unauthorized, match="expired"):
        store.find_caller(tx, secret, now=NOON + HOUR)
    with pytest.raises(Invalid, match="future"):
        store.create_key(tx, None, "late", now=NOON, expires_at=NOON)


def test_a_revoked_key_is_refused_and_revoking_it_again_keeps_the_first_instant(
    tx: Tx,
) -> None:
    made, secret = store.create_key(tx, None, "ops", now=NOON)
    for later in (HOUR, 2 * HOUR):
        store.revoke_key(tx, made.id, tenant_id=None, now=NOON + later)
    assert store.list_keys(tx, None)[0].revoked_at == NOON + HOUR
    with pytest.raises(Unauthorized, match="revoked"):
        store.find_caller(tx, secret, now=NOON)


def test_only_a_hash_of_a_key_is_stored(tx: Tx) -> None:
    made, secret = store.create_key(tx, None, "ops", now=NOON)
    row = tx.execute("SELECT * FROM api_key").fetchone()
    everything = tx.execute("SELECT api_key::text AS row FROM api_key").fetchone()
    assert row is not None and everything is not None
    assert row["digest"] == digest(secret)
    assert secret not in everything["row"]
    assert len(made.hint) < len(PREFIX) + 6 and secret.startswith(made.hint.rstrip("…"))


def test_another_tenants_key_can_be_neither_seen_nor_revoked(tx: Tx) -> None:
    acme = store.create_tenant(tx, "acme", now=NOON)
    other = store.create_tenant(tx, "other", now=NOON)
    made, secret = store.create_key(tx, acme.id, "laptop", now=NOON)
    operators, _ = store.create_key(tx, None, "ops", now=NOON)
    assert store.list_keys(tx, other.id) == []
    for key_id, tenant in [
        (made.id, other.id), (operators.id, other.id), (KeyId(new_id()), acme.id),
    ]:  # fmt: skip
        with pytest.raises(NotFound):
            store.revoke_key(tx, key_id, tenant_id=tenant, now=NOON)
    assert store.find_caller(tx, secret, now=NOON).tenant == acme
    store.revoke_key(tx, made.id, tenant_id=acme.id, now=NOON)


def test_a_key_kept_across_restarts_is_added_once(tx: Tx) -> None:
    secret = new_key()
    for _ in range(2):
        store.create_key(tx, None, "ops", now=NOON, key=secret)
    assert len(store.list_keys(tx, None)) == 1


def test_two_tenants_of_one_name_cannot_be(tx: Tx) -> None:
    store.create_tenant(tx, "Caf\u00e9", now=NOON)
    with pytest.raises(Refused):
        store.create_tenant(tx, " Cafe\u0301 ", now=NOON)
    with pytest.raises(NotFound):
        store.create_key(tx, TenantId(new_id()), "x", now=NOON)
    with pytest.raises(Invalid):
        store.create_tenant(tx, "a\x00b", now=NOON)


# ── access keys ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def vault(folder: Path) -> Vault:
    made = Vault(folder / "access-keys.key")
    made.prepare()
    return made


def test_an_access_key_signs_for_its_tenant_and_its_secret_is_no_key(tx: Tx, vault: Vault) -> None:
    acme = store.create_tenant(tx, "acme", now=NOON)
    made, secret = store.create_access_key(tx, acme.id, "boto3", vault=vault, now=NOON)
    assert made.access_key_id is not None
    assert (len(made.access_key_id), len(secret)) == (20, 40)
    assert store.list_keys(tx, acme.id) == [made]
    signer = store.find_signer(tx, made.access_key_id, now=NOON)
    assert (signer.key_id, signer.role, signer.tenant) == (made.id, Role.TENANT, acme)
    assert vault.open(signer.sealed_secret, bound_to=made.access_key_id) == secret
    for shown in (secret, made.access_key_id, f"{made.access_key_id}:{secret}"):
        with pytest.raises(Unauthorized):
            store.find_caller(tx, shown, now=NOON)
    with pytest.raises(Unauthorized, match="not known"):
        store.find_signer(tx, secret, now=NOON)


def test_an_access_key_s_secret_is_not_in_the_database(tx: Tx, vault: Vault) -> None:
    acme = store.create_tenant(tx, "acme", now=NOON)
    _, secret = store.create_access_key(tx, acme.id, "boto3", vault=vault, now=NOON)
    rows = tx.execute(
        "SELECT k::text || encode(a.sealed_secret, 'escape') AS row"
        " FROM api_key k JOIN access_key a ON a.key_id = k.id"
    ).fetchall()
    assert len(rows) == 1
    assert secret not in rows[0]["row"]


def test_an_access_key_ends_as_every_key_does(tx: Tx, vault: Vault) -> None:
    acme = store.create_tenant(tx, "acme", now=NOON)
    made, _ = store.create_access_key(
        tx, acme.id, "boto3", vault=vault, now=NOON, expires_at=NOON + HOUR
    )
    with pytest.raises(Unauthorized, match="this access key has expired"):
        store.find_signer(tx, str(made.access_key_id), now=NOON + HOUR)
    store.revoke_key(tx, made.id, tenant_id=acme.id, now=NOON)
    with pytest.raises(Unauthorized, match="revoked"):
        store.find_signer(tx, str(made.access_key_id), now=NOON)


def test_an_operator_has_nothing_to_sign(tx: Tx, vault: Vault) -> None:
    with pytest.raises(Refused, match="operator"):
        store.create_access_key(tx, None, "boto3", vault=vault, now=NOON)
