"""Signing in by OpenID Connect, at a real provider on loopback."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.console.house import Answer, Browser, House, furnished
from tests.e2e.instance import until

from sublet.core.clock import wall
from sublet.core.net import free_port
from sublet.tenants.person import PersonRole


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    port = free_port("127.0.0.1")
    process = subprocess.Popen(
        [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/.well-known/openid-configuration").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, what="the provider")
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def house(
    postgres_url: str, template: str, provider: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = Path(tmp_path_factory.mktemp("oidc"))
    with furnished(
        postgres_url, template, folder, console_url="http://console.test",
        oidc_issuer=provider, oidc_client_id="sublet", oidc_client_secret="secret",
    ) as made:  # fmt: skip
        made.clock.advance(wall() - made.clock.now())  # the provider's tokens are of today
        yield made


def add(provider: str, sub: str, **claims: object) -> None:
    body = {"sub": sub, **claims}
    assert httpx.put(f"{provider}/users/{sub}", json=body).status_code in {200, 204}


def come_back(browser: Browser, sub: str) -> Answer:
    """Sign in at the provider, as a person would, and return what the console then says."""
    there = browser.get("/oidc", next="/console/account").headers["location"]
    answer = httpx.post(there, data={"sub": sub}, follow_redirects=False)
    back = answer.headers["location"]
    assert back.startswith("http://console.test/console/oidc/back?")
    return browser.client.get(back)


def test_who_was_invited_signs_in_and_stays_the_same_person(house: House, provider: str) -> None:
    add(provider, "u1", email="Uma@example.com", email_verified=True, name="Uma")
    house.invite(PersonRole.FINANCE, email="uma@example.com")
    browser = house.browser()
    assert come_back(browser, "u1").headers["location"] == "/console/account"
    page = browser.get("/account").text
    assert "uma@example.com" in page and "finance" in page
    add(provider, "u1", email="renamed@example.com", email_verified=True, name="Uma")
    again = house.browser()
    assert come_back(again, "u1").status_code == 303
    assert "uma@example.com" in again.get("/account").text


def test_an_address_that_nobody_verified_or_invited_opens_nothing(
    house: House, provider: str
) -> None:
    house.invite(PersonRole.OWNER, email="boss@example.com")
    add(provider, "u2", email="boss@example.com", email_verified=False)
    add(provider, "u3", email="stranger@example.com", email_verified=True)
    for sub in ("u2", "u3", "u4"):
        browser = house.browser()
        assert come_back(browser, sub).status_code == 409
        assert browser.get("/account").status_code == 303


def test_an_account_with_a_password_is_found_by_its_verified_address_once(
    house: House, provider: str
) -> None:
    house.signed_in(PersonRole.OWNER, email="own@example.com")
    add(provider, "u5", email="own@example.com", email_verified=True)
    add(provider, "u6", email="own@example.com", email_verified=True)
    assert come_back(house.browser(), "u5").status_code == 303
    assert come_back(house.browser(), "u6").status_code == 409


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(
    house: House, provider: str
) -> None:
    mine, theirs = house.browser(), house.browser()
    there = theirs.get("/oidc").headers["location"]
    back = httpx.post(there, data={"sub": "u5"}, follow_redirects=False).headers["location"]
    assert mine.client.get(back).status_code == 409  # it began nothing
    mine.get("/oidc")
    assert mine.client.get(back).status_code == 409  # it began another
    changed = re.sub(r"code=[^&]+", "code=made-up", back)
    assert theirs.client.get(changed).status_code == 409
