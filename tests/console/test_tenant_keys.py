"""A tenant's keys, in the console."""

import re

import pytest
from tests.console.house import Browser, House

from sublet.core.errors import Unauthorized
from sublet.tenants import store as tenants
from sublet.tenants.person import PersonRole

SECRET = re.compile(r'id="new-key" readonly value="([^"]+)"')


def secret_of(page: str) -> str:
    found = SECRET.search(page)
    assert found is not None, page
    return found[1]


def works(house: House, key: str) -> bool:
    with house.db.transaction() as tx:
        try:
            caller = tenants.find_caller(tx, key, now=house.clock.now())
        except Unauthorized:
            return False
    assert caller.tenant == house.acme
    return True


def id_of(house: House, key: str) -> str:
    with house.db.transaction() as tx:
        return str(tenants.find_caller(tx, key, now=house.clock.now()).key_id)


@pytest.fixture(scope="module")
def admin(house: House) -> Browser:
    return house.signed_in(PersonRole.TENANT_ADMIN)


def test_a_secret_is_shown_once_and_is_on_no_record(house: House, admin: Browser) -> None:
    made = admin.post("/keys", name="nightly", lifetime="30 days", amount="5", limit_kind="month")
    secret = secret_of(made.text)
    assert works(house, secret)
    listed = admin.get("/keys").text
    assert "nightly" in listed and secret not in listed and "$0.00 of $5.00" in listed
    assert secret not in admin.get("/changes").text
    signs = admin.post("/keys", name="aws", kind="sigv4").text
    assert re.search(r'id="new-id" readonly value="SLAK\w{16}"', signs)
    assert len(secret_of(signs)) == 40
    assert admin.post("/keys", name="x", lifetime="for ever").status_code == 422


def test_a_rotated_key_keeps_its_limits_and_the_old_one_goes_on(
    house: House, admin: Browser
) -> None:
    old = secret_of(admin.post("/keys", name="turning", lifetime="90 days").text)
    old_id = id_of(house, old)
    admin.post("/keys/limits", key_id=old_id, limit_kind="requests_per_minute", amount="77")
    kept = secret_of(admin.post(f"/keys/{old_id}/rotate").text)
    assert works(house, old) and works(house, kept)
    assert admin.get("/keys").text.count("77 requests a minute") == 2
    gone = admin.post("/keys/limits/remove", key_id=old_id, limit_kind="requests_per_minute")
    assert gone.status_code == 303
    assert admin.post(f"/keys/{old_id}/revoke").status_code == 303
    assert not works(house, old)
    assert admin.get("/keys").text.count("77 requests a minute") == 1


def test_nobody_changes_another_tenants_keys(house: House, admin: Browser) -> None:
    with house.db.transaction() as tx:
        theirs, _ = tenants.create_key(tx, house.other.id, "theirs", now=house.clock.now())
    assert "theirs" not in admin.get("/keys", all="1").text
    for what in ("revoke", "rotate"):
        assert admin.post(f"/keys/{theirs.id}/{what}").status_code == 404
    limit = {"key_id": str(theirs.id), "limit_kind": "streams", "amount": "1"}
    assert admin.post("/keys/limits", **limit).status_code == 404
    member = house.signed_in(PersonRole.TENANT_MEMBER)
    assert "Make it" not in member.get("/keys").text
    assert member.post("/keys", name="mine").status_code == 403


def test_the_playground_says_that_the_gateway_is_away_and_its_key_ends_with_the_session(
    house: House, admin: Browser
) -> None:
    page = admin.get("/playground")
    assert page.status_code == 200 and "The gateway does not answer now" in page.text
    said = admin.post("/playground/chat", model="m", messages='[{"role":"user","content":"Hi"}]')
    assert '"error"' in said.text and "does not answer" in said.text
    assert admin.post("/playground/chat", model="m", messages="{").status_code == 422
    listed = admin.get("/keys").text
    assert listed.count("playground of Ada") >= 1
