"""The pages hold together: links lead somewhere, tables repeat what the code says."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sublet.app.http import STATUSES
from sublet.engine.port import Phase
from sublet.gateway.failures import TABLE
from sublet.leases.lease import EndReason, State
from sublet.market.price import Tier
from sublet.metering.usage import Outcome
from sublet.planner.prospect import Reason

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def _pages() -> list[Path]:
    found = [*ROOT.glob("*.md")]
    for folder in ("docs", "src", "tests", "benchmarks"):
        found += ROOT.glob(f"{folder}/**/*.md")
    return sorted(page for page in found if "node_modules" not in page.parts)


def _links(page: Path) -> Iterator[str]:
    yield from _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", _pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for link in _links(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in _anchors(target), link


def test_every_room_says_what_it_is() -> None:
    rooms = [
        path for path in (ROOT / "src" / "sublet").iterdir() if (path / "__init__.py").exists()
    ]
    without = {room.name for room in rooms if not (room / "README.md").exists()}
    assert without <= {"cli", "schema"}  # thin, and plain SQL


def test_the_gateways_errors_are_all_on_the_page() -> None:
    page = (ROOT / "docs" / "use" / "openai.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", page, re.MULTILINE)
    told = {(int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert told == {(row.status, row.code) for row in TABLE.values()}


def test_the_apis_errors_are_all_on_the_page() -> None:
    page = (ROOT / "docs" / "operate" / "running.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|", page, re.MULTILINE)
    told = {(int(status), code) for group, code in rows for status in group.split(",")}
    raised = {(status, kind.code) for kind, status in STATUSES.items() if status != 500}
    assert raised <= told


@pytest.mark.parametrize("words", [State, EndReason, Tier, Phase, Outcome])
def test_every_state_and_reason_is_in_the_glossary(words: type) -> None:
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert [word.value for word in words if f"`{word.value}`" not in page] == []  # type: ignore[attr-defined]


def test_every_reason_for_selling_no_more_is_on_its_page() -> None:
    page = (ROOT / "docs" / "operate" / "surplus.md").read_text(encoding="utf-8")
    assert [reason.value for reason in Reason if f"`{reason.value}`" not in page] == []


def test_the_pages_name_no_package_host() -> None:
    for page in _pages():
        text = page.read_text(encoding="utf-8").lower()
        assert not re.search(r"pypi\.|pythonhosted|npmjs|crates\.io|huggingface\.co", text), page
