"""Accounts, passwords, one-time codes, sessions."""

import re
from datetime import timedelta

import pyotp
from tests.console.house import PASSWORD, House

from sublet.tenants.person import FAILURES_WITHIN, IDLE, INVITED, LONGEST, PersonRole


def test_an_invitation_makes_one_account_and_signs_it_in(house: House) -> None:
    browser = house.browser()
    token = house.invite(PersonRole.FINANCE)
    assert "finance" in browser.get(f"/welcome/{token}").text
    assert browser.accept(token, email="Fin@Example.com").headers["location"] == "/console/"
    assert "Welcome, Ada." in browser.get("/").text
    assert "fin@example.com" in browser.get("/account").text
    again = house.browser()
    assert again.accept(token, email="second@example.com").status_code == 404
    assert again.get(f"/welcome/{token}").status_code == 404


def test_an_invitation_is_good_for_a_week_and_for_its_address_alone(house: House) -> None:
    late = house.invite(PersonRole.READ_ONLY)
    mine = house.invite(PersonRole.READ_ONLY, email="mine@example.com")
    browser = house.browser()
    assert browser.accept(mine, email="yours@example.com").status_code == 422
    assert browser.accept(mine, email="mine@example.com", password="short").status_code == 422
    assert browser.accept(mine, email="mine@example.com").status_code == 303
    house.clock.advance(INVITED)
    assert house.browser().accept(late, email="late@example.com").status_code == 404


def test_who_has_no_account_yet_is_told_how_to_get_one(house: House) -> None:
    with house.db.transaction() as tx:
        tx.execute("TRUNCATE person_session, invitation, sign_in_failure")
        tx.execute("ALTER TABLE person_change DISABLE TRIGGER USER")
        tx.execute("DELETE FROM person_change")
        tx.execute("ALTER TABLE person_change ENABLE TRIGGER USER")
        tx.execute("DELETE FROM person")
    assert "sublet console invite" in house.browser().get("/sign-in").text


def test_a_password_opens_and_a_wrong_one_does_not(house: House) -> None:
    house.signed_in(PersonRole.OWNER, email="own@example.com")
    browser = house.browser()
    assert browser.sign_in("own@example.com", "wrong").status_code == 422
    assert browser.sign_in("nobody@example.com").status_code == 422
    assert browser.get("/account").status_code == 303
    answer = browser.sign_in("OWN@example.com", next="/console/leases?state=running")
    assert answer.headers["location"] == "/console/leases?state=running"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    for elsewhere in (
        "https://evil.example",
        "//evil.example",
        "/console//x",
        "/consolex",
        "/console/\\x",
    ):
        other = house.browser().sign_in("own@example.com", next=elsewhere)
        assert other.headers["location"] == "/console/"


def test_too_many_wrong_passwords_close_the_door_for_a_while(house: House) -> None:
    house.signed_in(PersonRole.OWNER, email="slow@example.com")
    browser = house.browser()
    for _ in range(10):
        assert browser.sign_in("slow@example.com", "wrong").status_code == 422
    assert browser.sign_in("slow@example.com").status_code == 429
    house.clock.advance(FAILURES_WITHIN)
    assert browser.sign_in("slow@example.com").status_code == 303


def test_a_session_ends_when_nobody_comes_for_half_a_day_and_after_a_week(house: House) -> None:
    browser = house.signed_in(PersonRole.OWNER)
    house.clock.advance(IDLE - timedelta(seconds=1))
    assert browser.get("/account").status_code == 200
    for _ in range(int(LONGEST / IDLE) * 2):
        house.clock.advance(IDLE / 2)
        last = browser.get("/account").status_code
    assert last == 303
    gone = house.signed_in(PersonRole.OWNER)
    house.clock.advance(IDLE)
    assert gone.get("/account").status_code == 303


def test_signing_out_and_being_shut_out_end_a_session_at_once(house: House) -> None:
    owner = house.signed_in(PersonRole.OWNER)
    victim = house.signed_in(PersonRole.FINANCE, email="gone@example.com")
    with house.db.transaction() as tx:
        row = tx.execute("SELECT id FROM person WHERE email = 'gone@example.com'").fetchone()
    assert row is not None
    assert owner.post(f"/people/{row['id']}", what="disable").status_code == 303
    assert victim.get("/account").status_code == 303
    assert victim.sign_in("gone@example.com").status_code == 422
    changes = owner.get("/changes").text
    assert "person.change" in changes and "gone@example.com" in changes
    assert owner.post("/sign-out").status_code == 303
    assert owner.get("/account").status_code == 303


def test_a_new_password_signs_out_other_browsers(house: House) -> None:
    first = house.signed_in(PersonRole.OWNER, email="two@example.com")
    second = house.browser()
    second.sign_in("two@example.com")
    new = "another horse battery"
    change = {"new_password": new, "new_password_again": new}
    assert second.post("/account/password", password="wrong", **change).status_code == 409
    assert second.post("/account/password", password=PASSWORD, **change).status_code == 303
    assert first.get("/account").status_code == 303
    assert second.get("/account").status_code == 200
    kept = second.get("/changes").text
    assert "account.password" in kept and new not in kept and PASSWORD not in kept


def test_a_code_is_asked_for_after_the_password_and_counts_once(house: House) -> None:
    browser = house.signed_in(PersonRole.OWNER, email="code@example.com")
    page = browser.post("/account/codes", password=PASSWORD).text
    found = re.search(r'name="secret" value="(\w+)"', page)
    assert found is not None
    totp = pyotp.TOTP(found[1])

    def code() -> str:
        return totp.at(house.clock.now())

    assert browser.post("/account/codes/confirm", secret=found[1], code="000000").status_code == 422
    assert browser.post("/account/codes/confirm", secret=found[1], code=code()).status_code == 303
    other = house.browser()
    answer = other.sign_in("code@example.com", next="/console/account")
    assert answer.headers["location"].startswith("/console/code")
    assert other.get("/account").status_code == 303  # the password alone opens nothing
    assert other.post("/code", code=code()).status_code == 422  # it was used to set this up
    house.clock.advance(timedelta(seconds=30))
    assert other.post("/code", code=code()).status_code == 303
    assert other.get("/account").status_code == 200
    third = house.browser()
    third.sign_in("code@example.com")
    assert third.post("/code", code=code()).status_code == 422
