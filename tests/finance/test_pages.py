"""Commands that need no instance, and the pages that they write."""

import json
import re
from pathlib import Path

import pytest
from tests.cli.fake_api import runner

from sublet.console.sheet import render
from sublet.finance.scenarios import shipped

LOTS = (
    "lot,kind,site,pool,gpus,bought_on,cost,life_months,watts_per_gpu\n"
    "<b>one</b>,gpus,north,h100,1000,2026-06-01,50000000,60,1400\n"
)


def data_of(page: str) -> dict[str, object]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    document = json.loads(found[1])
    assert isinstance(document, dict)
    return document


def test_stress_lists_what_is_shipped_and_writes_a_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sublet = runner(capsys)
    assert [one["name"] for one in json.loads(sublet("stress", "--json").out)["items"]] == shipped()
    (folder / "lots.csv").write_text(LOTS)
    page = folder / "stress.html"
    command = f"stress price-halves --assets {folder}/lots.csv --runs 20 --html {page}"
    said = sublet(*command.split())
    assert said.code == 0, said.err
    assert "breaks even" in said.out
    assert "with dice, 20 runs" in said.out
    document = json.loads(sublet(*f"{command} --json".split()).out)
    assert len(document["quarters"]) == 18
    assert len(document["monte_carlo"]["cumulative_usd"]["p50"]) == 18
    text = page.read_text()
    assert data_of(text)["title"] == "Stress: price-halves"
    assert not re.search(r'(src|href)="?http|@import|url\(', text), "it loads nothing"


def test_a_page_is_not_ended_by_a_name_from_outside() -> None:
    page = render("</script><script>alert(1)</script>", "", [])
    assert "<script>alert" not in page
    assert data_of(page)["title"] == "</script><script>alert(1)</script>"


def test_an_event_study_over_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = [f"2026-{month:02d}-{day:02d}" for month in range(1, 7) for day in range(1, 29)]
    rows = [f"{day},{100 + (n % 5) * 0.1 + (9 if n >= 120 else 0)}" for n, day in enumerate(days)]
    path = folder / "prices.csv"
    path.write_text("\n".join(["day,usd", *rows]) + "\n")
    sublet = runner(capsys)
    document = json.loads(sublet(*f"signals events {path} --event {days[120]} --json".split()).out)
    assert document["events"][0]["car"] == pytest.approx(0.086, abs=0.01)
    assert document["events"][0]["p_value"] < 0.001
    said = sublet(*f"signals events {path} --event {days[120]} --event {days[140]}".split())
    assert "together" in said.out
    assert sublet(*f"signals events {path} --event yesterday".split()).code == 2
    assert (
        "cannot read" in sublet(*f"signals events {folder}/none.csv --event 2026-01-01".split()).err
    )


def test_a_question_of_capital_over_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = Path(__file__).parents[2] / "docs" / "operate" / "returns.md"
    (toml,) = re.findall(r"```toml\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    path = folder / "question.toml"
    path.write_text(toml)
    said = runner(capsys)("capital", str(path))
    assert said.code == 0, said.err
    assert "2026-12" in said.out
    assert re.search(r"^(timing mismatch|overbuild|short|balanced): ", said.out, re.MULTILINE)
