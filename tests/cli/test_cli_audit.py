"""`sublet audit`, from files to what a person, a program and a manager see."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.cli.fake_api import Sublet

from sublet.cli import plots, waiting

SACCT = """\
JobIDRaw|JobID|Account|Partition|Submit|Start|End|State|AllocTRES|ReqTRES
1|1|physics|main|2026-01-01T00:00:00|2026-01-01T00:00:00|2026-01-02T00:00:00|COMPLETED|gres/gpu:a100=4,gres/gpu=4|gres/gpu=4
2|2|biology|main|2026-01-01T00:00:00|2026-01-01T02:00:00|2026-01-01T06:00:00|COMPLETED|gres/gpu:a100=4,gres/gpu=4|gres/gpu=4
3|3|biology|main|2026-01-01T20:00:00|2026-01-02T00:00:00|Unknown|RUNNING|gres/gpu:a100=2,gres/gpu=2|gres/gpu=2
"""
DAY = ("--from", "2026-01-01", "--to", "2026-01-02")


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def read(sublet: Sublet, *arguments: str) -> Any:
    result = sublet("audit", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_a_day_of_eight_gpus_adds_up_by_hand(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT)
    found = read(bare, file, *DAY, "--capacity", "8", "--quota-gpus", "biology=4")
    (pool,) = found["pools"]
    assert (pool["name"], pool["gpus"], pool["capacity"]) == ("a100", 8, "given")
    # Four GPUs all day but for four hours: 24 x 8 less 24 x 4 less 4 x 4.
    assert (pool["gpu_hours"], pool["running_gpu_hours"], pool["idle_gpu_hours"]) == (192, 112, 80)
    runs = {run["at_least_s"]: run["gpu_hours"] for run in pool["idle_runs"] if run["gpu_hours"]}
    assert runs == {3600: 8, 12 * 3600: 72}
    alone = {name: firm["gpu_hours"] for name, firm in pool["hindsight_firm_alone"].items()}
    assert alone == {"24h": 0, "4h": 64, "1h": 80}
    mix = {name: sold["gpu_hours"] for name, sold in pool["hindsight_mix"].items()}
    assert mix == {"24h": 0, "4h": 64, "1h": 16, "interruptible": 0}
    assert pool["hindsight_worth_usd"] == "65.60"  # 64 at 0.85, 16 at 0.70
    # Four waited from 0 to 2 with four idle, two from 20 on.
    assert pool["idle_beside_waiting_gpu_hours"] == 4 * 2 + 2 * 4
    assert pool["idle_by_hour_of_week"][3 * 24 : 4 * 24] == [4, 4, 0, 0, 0, 0, *[4] * 18]
    quotas = {quota["name"]: quota for quota in found["quotas"]}
    assert (quotas["physics"]["peak_gpus"], quotas["physics"]["idle_gpu_hours"]) == (4, 0)
    assert (quotas["biology"]["nominal_gpus"], quotas["biology"]["idle_gpu_hours"]) == (4, 80)
    assert {name: total for name, total in found["total"].items() if name in pool} == {
        name: pool[name] for name in found["total"]
    }


def test_prices_change_what_is_worth_selling(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT)
    prices = "4h=0.5,1h=0.7,interruptible=0.6"
    found = read(bare, file, *DAY, "--capacity", "8", "--prices", prices)
    mix = {name: sold["gpu_hours"] for name, sold in found["total"]["hindsight_mix"].items()}
    assert mix == {"24h": 0, "4h": 0, "1h": 80, "interruptible": 0}
    assert found["total"]["hindsight_worth_usd"] == "56.00"


def test_a_capacity_below_what_ran_is_said(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT)
    found = read(bare, file, *DAY, "--capacity", "a100=6")
    assert found["pools"][0]["most_over_gpus"] == 2
    (note,) = found["notes"]
    assert note.startswith("pool a100: jobs held up to 2 GPUs more than there were, for 4.0 h in")
    guessed = read(bare, file, *DAY)
    assert guessed["pools"][0]["capacity"] == "peak"
    assert "say it with --capacity a100=N" in guessed["notes"][0]


def test_without_from_it_starts_where_the_record_is_whole(bare: Sublet, folder: Path) -> None:
    found = read(bare, write(folder, "sacct.txt", SACCT))
    assert (found["from"], found["to"]) == ("2026-01-01T06:00:00Z", "2026-01-02T00:00:00Z")
    assert found["notes"][0].startswith("looked at from the first end of a job")


def test_curves_and_job_lists_of_several_pools_are_read_together(
    bare: Sublet, folder: Path
) -> None:
    rows = [f"{hour},8,{8 if hour == 5 else 4}" for hour in range(24) if hour != 9]
    curve = write(folder, "curve.csv", "\n".join(["hour,all,used", *rows]) + "\n")
    jobs = write(
        folder, "v100.csv",
        'submitted,seconds,n,team\n1970-01-01 00:00:00,7200,3,x\n1970-01-01T01:00,3600,1,"y, z"\n',
    )  # fmt: skip
    found = read(
        bare, f"h100={curve}", jobs, "--time", "hour", "--total", "all", "--running", "used",
        "--submit", "submitted", "--duration", "seconds", "--gpus", "n", "--quota", "team",
        "--from", "1970-01-01", "--to", "1970-01-02",
    )  # fmt: skip
    pools = {pool["name"]: pool for pool in found["pools"]}
    assert pools["h100"]["idle_gpu_hours"] == 22 * 4
    assert pools["h100"]["unknown_hours"] == 1
    assert pools["v100"]["running_gpu_hours"] == 7
    assert pools["v100"]["gpu_hours"] == 4 * 24
    assert [quota["name"] for quota in found["quotas"]] == ["x", "y, z"]
    assert [file["kind"] for file in found["files"]] == ["demand curve", "job list"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty: there must be a header row"),
        ("time,gpus_total,gpus_running\n", "holds no sample that can be used"),
        ("submit_time,duration_s,gpus\n", "is empty: it has a header row and nothing below it"),
        (SACCT.partition("\n")[0] + "\n", "is empty: it has a header row and nothing below it"),
        (SACCT.partition("\n")[2], "does not begin with sacct's header row"),
        ("JobID|State\n1|COMPLETED\n", "has no column Start, End, AllocTRES: print it with `sacct"),
        ("a,b\n1,2\n", "has the columns a, b: a demand curve has time, gpus_total"),
        ("submit_time,duration_s,gpus\n2026-01-01,60,x\n", "line 2: gpus is 'x', which is not"),
        ("submit_time,duration_s,gpus\n2026-01-01,60,0\n", "holds no job with GPUs"),
        ("submit_time,duration_s,gpus\n2026-01-01,-60,1\n", "line 2: duration_s is '-60', which"),
        ("submit_time,duration_s,gpus\n,60,1\n", "line 2: submit_time is '', which is not a time"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    bare: Sublet, folder: Path, text: str, why: str
) -> None:
    result = bare("audit", write(folder, "file", text))
    assert result.code == 1 and result.out == ""
    assert why in result.err and str(folder / "file") in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--capacity", "many"], "'many' is not NAME=N"),
        (["--capacity", "b200=8"], "--capacity names 'b200', but the record has a100"),
        (["--quota-gpus", "maths=8"], "--quota-gpus names 'maths', but the record has biology"),
        (["--prices", "2h=1"], "'2h=1' is not NAME=USD with NAME one of 24h, 4h, 1h"),
        (["--prices", "1h=-1"], "'-1' is not a price such as 0.85"),
        (["--from", "noon"], "'noon' is not a time such as 2026-07-01"),
        (["--from", "2027-01-01"], "--from must lie before --to"),
        (["--quota", "Team"], "has no column Team"),
        (["--policy", "wish"], "no policy is called 'wish'; there are default"),
        (["--capacity", "7", "--capacity", "8"], "'8' is given twice"),
    ],
)
def test_a_wrong_option_says_what_it_may_be(
    bare: Sublet, folder: Path, arguments: list[str], why: str
) -> None:
    result = bare("audit", write(folder, "sacct.txt", SACCT), *arguments)
    assert result.code in {1, 2}
    assert why in result.err


def test_a_policy_is_replayed_from_the_past_alone_and_hindsight_is_its_ceiling(
    bare: Sublet, folder: Path
) -> None:
    start = 1_767_225_600
    rows = [f"{start + 600 * i},20,{8 + 4 * (i // 36 % 4 == 1)}" for i in range(144 * 10)]
    file = write(folder, "a100.csv", "\n".join(["time,gpus_total,gpus_running", *rows]) + "\n")
    found = read(bare, file, "--policy", "default")
    replay = found["total"]["replay"]
    assert replay == found["pools"][0]["replay"]
    assert (replay["from"], replay["to"]) == ("2026-01-08T00:00:00Z", "2026-01-11T00:00:00Z")
    assert replay["idle_gpu_hours"] == 3 * 24 * 11
    sold = replay["firm_gpu_hours"] + replay["interruptible_gpu_hours"]
    assert 0 < sold <= replay["idle_gpu_hours"]
    assert 0 < float(replay["worth_usd"]) <= float(replay["hindsight_worth_usd"])
    said = bare("audit", file, "--policy", "default").out
    assert "What the policy default would have sold, deciding from the past alone" in said
    short = bare("audit", write(folder, "sacct.txt", SACCT), *DAY, "--policy", "default").out
    assert "The record is too short" in short


def test_what_is_no_file_to_read_twice_says_so(bare: Sublet, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    assert "is not a regular file: write it to one first" in bare("audit", str(pipe)).err
    assert "Is a directory" in bare("audit", str(folder)).err
    assert "No such file" in bare("audit", str(folder / "none")).err


def test_a_period_beyond_the_record_is_said(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT)
    found = read(bare, file, "--from", "2025-12-31", "--to", "2026-01-03", "--capacity", "8")
    assert [note.partition(":")[0] for note in found["notes"]] == [
        "the sacct record speaks of nothing before 2026-01-01 00",
        "the sacct record speaks of nothing after 2026-01-02 00",
    ]


def test_faults_are_counted_and_the_first_are_named(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT + "broken\n" * 30)
    found = read(bare, file, *DAY)
    assert found["skipped"] == found["files"][0]["skipped"] == 30
    assert [fault["line"] for fault in found["faults"]] == list(range(5, 25))
    said = bare("audit", file, *DAY).out
    assert "30 lines have faults" in said and "… and 10 more" in said
    strict = bare("audit", file, *DAY, "--strict")
    assert strict.code == 1
    assert f"{file}, line 5: 1 fields where the header has 10" in strict.err


def test_people_see_what_programs_do(bare: Sublet, folder: Path) -> None:
    said = bare("audit", write(folder, "sacct.txt", SACCT), *DAY, "--capacity", "8").out
    assert "41.7% of all GPU-hours sat idle: 80 of 192" in said
    assert "worth $66 at most" in said
    for words in ("Where", "Whose quota", "In unbroken runs of", "knowing how it went on"):
        assert words in said
    assert max(map(len, said.splitlines())) <= 200


def test_the_worked_example_of_the_page_is_what_is_printed(bare: Sublet, folder: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "operate" / "audit.md"
    example = re.findall(r"(?m)^    (.*)$|^()$", page.read_text(encoding="utf-8"))
    lines = [line for line, _ in example]
    shown = lines[lines.index("$ cat sacct.txt") + 1 :]
    table, _, rest = "\n".join(shown).partition("\n\n$ sublet audit sacct.txt ")
    options, _, printed = rest.partition("\n")
    said = bare("audit", write(folder, "sacct.txt", table + "\n"), *options.split()).out
    wanted = [line for line in printed.splitlines() if line and line != "…"]
    assert len(wanted) == 10
    assert [line for line in wanted if line not in map(str.rstrip, said.splitlines())] == []


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "action"}]

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts.append(data)


def test_the_page_is_one_file_that_loads_nothing_and_runs_no_name(
    bare: Sublet, folder: Path
) -> None:
    evil = "</script><script>alert(1)</script>"
    file = write(folder, "sacct.txt", SACCT.replace("physics", evil))
    page = folder / "idle.html"
    assert bare("audit", file, *DAY, "--capacity", "8", "--html", str(page)).code == 0
    text = page.read_text(encoding="utf-8")
    parsed = _Page(text)
    assert parsed.links == []
    assert evil not in text and "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    data = json.loads(parsed.scripts[0])
    assert data["audit"]["quotas"][0]["name"] == evil
    assert data["mixes"]["total"]["24h 4h 1h"] == {"24h": 0, "4h": 64, "1h": 16, "interruptible": 0}
    assert data["mixes"]["total"]["1h"] == {"1h": 80, "interruptible": 0}
    assert data["mixes"]["total"][""] == {"interruptible": 80}
    drawn = data["series"]["pools"]["a100"]
    assert sum(drawn["running"]) * drawn["step_s"] == pytest.approx(112 * 3600)


def test_a_page_that_cannot_be_written_says_so(bare: Sublet, folder: Path) -> None:
    file = write(folder, "sacct.txt", SACCT)
    result = bare("audit", file, "--html", str(folder / "missing" / "idle.html"))
    assert result.code == 2
    assert "cannot write" in result.err


def test_a_plot_fills_what_was_used_and_shades_what_was_idle() -> None:
    rows = plots.area([4.0, 2.0, None, 0.0], [4.0, 4.0, None, 4.0], height=4)
    assert rows == ["█░ ░", "█░ ░", "██ ░", "██ ░"]
    assert plots.bar(0.5, width=4) == "██"
    assert plots.bar(2.0, width=4) == "████"
    assert plots.axis(["a", "b"], width=5) == "a   b"


def test_a_bar_shows_only_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with waiting.Waiting(patience_seconds=3600) as patient:
        patient.told("reading", 1, 2)
    assert patient.bar is None
    with waiting.Waiting(patience_seconds=0) as impatient:
        impatient.told("reading", 1, 2)
        impatient.told("thinking", 0, 0)
        impatient._timer.join(10)
        assert impatient.bar is not None
        assert [task.percentage for task in impatient.bar.tasks] == [50, 0]
        assert impatient.bar.tasks[1].total is None  # it cannot say how far it is
        impatient.told("thinking", 3, 3)
        assert impatient.bar.tasks[1].finished
    assert not impatient.bar.live.is_started


def test_where_nobody_looks_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    with waiting.Waiting(patience_seconds=0) as unseen:
        unseen.told("reading", 1, 2)
    assert unseen.bar is None
    assert not unseen._timer.is_alive()
