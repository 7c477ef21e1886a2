"""Every page and every action, tried by everybody."""

from uuid import uuid4

import pytest
from tests.console.house import Browser, House

from sublet.console.contents import ACTIONS, PAGES
from sublet.console.page import Action, For, Page
from sublet.tenants.person import OF_TENANTS, RIGHTS, PersonRole

SEEN = [page for page in PAGES if page.walks]


def path_of(what: Page | Action) -> str:
    """Return its path, with things in it that there are not."""
    path = what.path
    for name in ("token", *what.example):
        path = path.replace(f"{{{name}}}", str(uuid4()))
    return path


@pytest.fixture(scope="module")
def browsers(house: House) -> dict[PersonRole | None, Browser]:
    """Return a browser for each role, and one in which nobody is signed in."""
    return {None: house.browser()} | {role: house.signed_in(role) for role in PersonRole}


def allowed(role: PersonRole | None, what: Page | Action) -> bool:
    """Say who may, in other words than the console's own."""
    if what.audience is For.ANYBODY:
        return True
    if role is None:
        return False
    theirs = {For.BOTH, For.TENANT if role in OF_TENANTS else For.OPERATOR}
    return what.audience in theirs and (what.needs is None or what.needs in RIGHTS[role])


@pytest.mark.parametrize("page", SEEN, ids=lambda page: page.path)
def test_a_page_opens_for_those_whom_it_is_for(
    browsers: dict[PersonRole | None, Browser], page: Page
) -> None:
    for role, browser in browsers.items():
        answer = browser.get(path_of(page))
        if allowed(role, page):
            wanted = {200, 303} if not page.example else {404, 422}
            assert answer.status_code in wanted, (role, answer.text)
        elif role is None:
            assert answer.status_code == 303
            assert answer.headers["location"].startswith("/console/sign-in")
        else:
            assert answer.status_code == 403, role
            assert "<h1>Not for you</h1>" in answer.text


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.path)
def test_an_action_is_done_for_those_who_may(house: House, action: Action) -> None:
    for role in (None, *PersonRole):
        browser = house.browser() if role is None else house.signed_in(role)
        status = browser.post(path_of(action)).status_code
        if allowed(role, action):
            assert status not in {401, 403, 500}, role
        else:
            assert status == (401 if role is None else 403), role


def test_every_page_with_a_thing_in_its_path_says_which_a_test_may_use() -> None:
    for what in (*PAGES, *ACTIONS):
        assert what.path.count("{") == len(what.example), what.path


def test_a_form_of_another_site_or_without_its_token_changes_nothing(house: House) -> None:
    browser = house.signed_in(PersonRole.OWNER)
    client = browser.client
    form = {"token": browser.token, "role": "finance"}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert client.post("/console/people/invite", data=form, headers=headers).status_code == 403
    for token in ("", "0" * 64, house.signed_in(PersonRole.OWNER).token):
        sent = form | {"token": token}
        assert client.post("/console/people/invite", data=sent).status_code == 403
    ours = {"origin": "http://console.test", "sec-fetch-site": "same-origin"}
    assert client.post("/console/people/invite", data=form, headers=ours).status_code == 200


def test_every_answer_forbids_what_no_page_needs(house: House) -> None:
    browser = house.signed_in(PersonRole.OWNER)
    for path in ("/", "/nothing", "/sign-in", "/tenants-only"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_people_of_a_tenant_see_and_change_no_others(house: House) -> None:
    with_other = house.browser()
    with_other.accept(house.invite(PersonRole.TENANT_ADMIN, other=True), email="eve@other.example")
    admin = house.signed_in(PersonRole.TENANT_ADMIN, email="ann@acme.example")
    page = admin.get("/people").text
    assert "ann@acme.example" in page and "eve@other.example" not in page
    with house.db.transaction() as tx:
        rows = tx.execute("SELECT id, email FROM person WHERE email LIKE '%@%example%'").fetchall()
    ids = {row["email"]: row["id"] for row in rows}
    for email in ("eve@other.example", "ann@acme.example"):
        status = admin.post(f"/people/{ids[email]}", what="disable").status_code
        assert status == (404 if email.startswith("eve") else 422)
    assert with_other.get("/account").status_code == 200
    assert admin.post("/people/invite", role="owner").status_code == 422


def test_an_operator_acts_for_a_tenant_and_is_named_in_its_record(house: House) -> None:
    owner = house.signed_in(PersonRole.OWNER)
    assert owner.get("/leases").status_code == 200
    assert owner.post("/act-for", tenant=str(house.acme.id)).status_code == 303
    assert owner.get("/leases").status_code in {403, 200}
    assert f"You see what <b>{house.acme.name}</b> sees" in owner.get("/").text
    assert owner.get("/people").status_code == 403  # its people are its own
    assert owner.post("/act-for/end").status_code == 303
    assert "You see what" not in owner.get("/").text
    changes = house.signed_in(PersonRole.TENANT_ADMIN).get("/changes").text
    assert "session.act_for.end" in changes and "Ada" in changes
