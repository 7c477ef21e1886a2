"""Every page in a real Chromium: drawn, quick, readable by everybody, in both themes, wide and narrow."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright
from tests.app.serving import served
from tests.console.house import PASSWORD, House, furnished

from sublet.console import page as pages
from sublet.console.contents import PAGES
from sublet.console.page import For
from sublet.tenants.person import OF_TENANTS, PersonRole

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
# Looked at by people; git ignores them.
SHOTS: Final = Path(__file__).parents[2] / ".screenshots"
PATIENCE_MS: Final = 60_000.0
NOBODY: Final = "00000000-0000-7000-8000-000000000000"  # an id that nothing has
expect.set_options(timeout=PATIENCE_MS)
WIDE, NARROW = ViewportSize(width=1360, height=860), ViewportSize(width=390, height=800)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no chromium"
)


@pytest.fixture(scope="module")
def house(
    postgres_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = Path(tmp_path_factory.mktemp("browser"))
    with furnished(postgres_url, template, folder, story=True) as made:
        yield made


@pytest.fixture(scope="module")
def url(house: House) -> Iterator[str]:
    with served(house.app) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


def enter(context: BrowserContext, url: str, house: House, role: PersonRole) -> Page:
    """Make an account by an invitation, as a person does, and return its first page."""
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{url}/console/welcome/{house.invite(role)}")
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("E-mail address").fill(f"{role}.{os.urandom(4).hex()}@example.com")
    page.get_by_label("Password at least 10 characters").fill(PASSWORD)
    page.get_by_label("The password again").fill(PASSWORD)
    page.get_by_role("button", name="Make my account").click()
    page.wait_for_url("**/console/")
    return page


def things(house: House) -> Mapping[str, str]:
    """Return a thing of each kind that the story left."""
    asked: Mapping[str, Any] = {
        "lease": "SELECT id AS it FROM lease WHERE end_reason = 'reclaimed' LIMIT 1",
        "reclaim": "SELECT pool || '?at=' || replace(to_char(noticed_at AT TIME ZONE 'UTC',"
        " 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '+', '%2B') AS it FROM lease"
        " WHERE end_reason = 'reclaimed' LIMIT 1",
        "pool": "SELECT name AS it FROM pool LIMIT 1",
        "tenant": "SELECT id AS it FROM tenant WHERE kind = 'customer' LIMIT 1",
        "charge": "SELECT usage_id AS it FROM charge LIMIT 1",
        "invoice": "SELECT number AS it FROM invoice LIMIT 1",
        "account": "SELECT id AS it FROM account LIMIT 1",
    }
    with house.db.transaction() as tx:
        found = {kind: tx.execute(query).fetchone() for kind, query in asked.items()}
    named = {kind: str(row["it"]) for kind, row in found.items() if row is not None}
    return named | {"invitation": house.invite(PersonRole.READ_ONLY)}


def address(page: pages.Page, known: Mapping[str, str]) -> str:
    path = page.path
    for name, kind in page.example.items():
        path = path.replace(f"{{{name}}}", known.get(kind, NOBODY))
    return f"/console{path}"


def look_over(page: Page, shot: str) -> list[str]:
    """Return what is wrong with the page that is open, in both themes, wide and narrow; keep pictures."""
    wrong = []
    for theme, rules in (("light", None), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for size in (WIDE, NARROW):
            page.set_viewport_size(size)
            if size is WIDE:
                found = Axe().run(page, options=rules).response["violations"]
                wrong += [
                    f"{one['impact']} {one['id']} ({theme}): {one['nodes'][0]['target']}"
                    for one in found
                    if one["impact"] in {"serious", "critical"}
                ]
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wrong.append(f"it is wider than a window of {size['width']}")
            SHOTS.mkdir(exist_ok=True)
            page.screenshot(path=SHOTS / f"{shot}-{theme}-{size['width']}.png", full_page=True)
    if page.locator(".drawn:empty").count():
        wrong.append("a chart is not drawn")
    return wrong


@pytest.mark.parametrize("role", [PersonRole.OWNER, PersonRole.TENANT_ADMIN])
def test_every_page_can_be_used_by_everybody(
    chromium: Browser, house: House, url: str, role: PersonRole
) -> None:
    context = chromium.new_context()
    said: list[str] = []
    try:
        page = enter(context, url, house, role)
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        audience = For.TENANT if role in OF_TENANTS else For.OPERATOR
        mine = [one for one in PAGES if one.walks and one.audience in {For.BOTH, audience}]
        # What happened in the story happened to others: a tenant is told that there is no such thing.
        known = things(house) if audience is For.OPERATOR else {}
        wrong = {}
        for one in mine:
            answer = page.goto(url + address(one, known), wait_until="load")
            assert answer is not None
            there = all(kind in known for kind in one.example.values())
            found = [] if answer.status == (200 if there else 404) else [f"status {answer.status}"]
            name = one.path.strip("/").replace("/", "-").replace("{", "").replace("}", "")
            found += look_over(page, f"{role}-{name or 'overview'}")
            if found:
                wrong[one.path] = found
        assert wrong == {}
        expected = 0 if audience is For.OPERATOR else sum(bool(one.example) for one in mine)
        missing = [text for text in said if "status of 404" in text]
        assert len(missing) == expected, missing
        assert [text for text in said if text not in missing] == []
    finally:
        context.close()


@pytest.fixture
def owner(chromium: Browser, house: House, url: str) -> Iterator[Page]:
    context = chromium.new_context(viewport=WIDE)
    yield enter(context, url, house, PersonRole.OWNER)
    context.close()


def test_a_policy_shows_whom_it_would_hit_before_it_is_saved(owner: Page, house: House) -> None:
    owner.get_by_role("link", name="Fleet").click()
    owner.get_by_role("link", name="h200").first.click()
    owner.get_by_label("Longest notice, seconds").fill("1")
    owner.get_by_role("button", name="Save").click()
    expect(owner.get_by_role("alert")).to_contain_text("was promised 10 s of notice")
    assert notice(house) == 10
    owner.get_by_label("Save it also where promises stand").check()
    owner.get_by_role("button", name="Save").click()
    expect(owner.locator("#said")).to_contain_text("Saved.")
    assert notice(house) == 1
    owner.get_by_role("link", name="Changes").click()
    change = owner.locator("tr", has_text="pool.policy").first
    change.get_by_text("Show").click()
    expect(change).to_contain_text('"notice_seconds": 10')


def notice(house: House) -> int:
    with house.db.transaction() as tx:
        row = tx.execute("SELECT notice_seconds FROM pool WHERE name = 'h200'").fetchone()
    assert row is not None
    return int(row["notice_seconds"])


def test_from_the_total_to_the_request_that_caused_it(owner: Page) -> None:
    owner.get_by_role("link", name="Money").click()
    owner.locator("#charged").get_by_role("link").click()
    expect(owner.get_by_role("heading", level=1)).to_have_text("Charges")
    owner.get_by_label("Product").select_option("model")
    expect(owner.locator("tbody tr")).to_have_count(1)
    owner.locator("tbody tr").first.get_by_role("link").first.click()
    expect(owner.get_by_text("What was used")).to_be_visible()
    expect(owner.locator("dl.facts").first).to_contain_text("gemma")
    expect(owner.get_by_text(":wallet")).to_be_visible()


def test_a_reclaim_is_followed_from_who_needed_it_to_who_gave_way(owner: Page) -> None:
    owner.get_by_role("link", name="Reclaims").click()
    row = owner.locator("tbody tr").first
    expect(row).to_contain_text("training")
    row.get_by_role("link").first.click()
    expect(owner.get_by_role("region", name="Internal jobs")).to_contain_text("training")
    owner.get_by_role("region", name="Leases").get_by_role("link").first.click()
    expect(owner.locator("ol.timeline")).to_contain_text("Notice given")
    expect(owner.locator("ol.timeline")).to_contain_text("Internal job training started")
    expect(owner.locator("ol.timeline")).to_contain_text("Credited")


def test_a_slider_of_a_stress_scenario_moves_the_outcome_and_the_address(owner: Page) -> None:
    owner.get_by_role("link", name="Stress").click()
    owner.locator("[name=scenario]").select_option("price-halves")
    outcome = owner.locator("#outcome .figure .value").first
    before = outcome.text_content()
    slider = owner.get_by_label("Rental price")
    slider.focus()
    slider.press("End")
    expect(outcome).not_to_have_text(before or "")
    assert "price=200" in owner.url and "scenario=price-halves" in owner.url
    moved = outcome.text_content()
    owner.reload()
    expect(outcome).to_have_text(moved or "")


def test_a_table_is_sorted_and_filtered_by_its_address_and_back_goes_back(owner: Page) -> None:
    owner.get_by_role("link", name="Leases", exact=True).first.click()
    expect(owner.locator(".count")).to_contain_text("of 3")
    owner.get_by_label("State").select_option("ended")
    expect(owner.locator(".count")).to_contain_text("of 2")
    owner.get_by_role("link", name="GPUs", exact=True).click()
    expect(owner.locator("th[aria-sort]")).to_contain_text("GPUs")
    assert "state=ended" in owner.url and "sort=-gpus" in owner.url
    owner.go_back()
    expect(owner.locator("th[aria-sort]")).to_contain_text("Asked for")
    owner.get_by_role("searchbox").press_sequentially("nobody")
    expect(owner.get_by_text("No lease fits these filters.")).to_be_visible()
    expect(owner.get_by_role("searchbox")).to_be_focused()


def test_what_happens_shows_by_itself(owner: Page, house: House) -> None:
    owner.get_by_role("link", name="Leases", exact=True).first.click()
    expect(owner.locator(".count")).to_contain_text("of 3")
    with owner.expect_response("**/console/leases*"):  # nobody pressed anything
        tell_of_a_move(house)


def tell_of_a_move(house: House) -> None:
    with house.db.transaction() as tx:
        tx.execute(
            "INSERT INTO lease_event (lease_id, version, state, happened_at, recorded_at)"
            " SELECT id, 99, state, since, since FROM lease LIMIT 1"
        )
