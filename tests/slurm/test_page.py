"""docs/operate/slurm.md, followed step by step; and its table of settings."""

import os
import re
import signal
import subprocess
from dataclasses import fields
from pathlib import Path

from tests.slurm.cluster import need_slurm, script

from sublet.engine.slurm.settings import SlurmSettings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operate" / "slurm.md"
_BLOCK = re.compile(
    r"(<!-- in another terminal -->\n)?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def test_every_setting_is_on_the_page_and_nothing_else() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(field.name for field in fields(SlurmSettings))


def test_the_page_is_true(folder: Path, database_url: str) -> None:
    need_slurm(accounting=True)
    (port,) = script.free_ports(1)
    first, other = "", ""
    for elsewhere, block in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        text = block.replace("7171", str(port))
        if elsewhere:
            other = text.replace("sublet control", "exec sublet control")
            # Its variables are that terminal's own.
            first += f"sh -ec {_quoted(other)} > $TRY/control.log 2>&1 & echo $! > $TRY/pid\n"
        else:
            first += text
    assert other
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SUBLET_")}
    environment = kept | {
        "TRY": str(folder),
        "DATABASE_URL": database_url,
        "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    said = folder / "said"
    try:
        with said.open("wb") as output:
            done = subprocess.run(
                ["timeout", "480", "bash", "-eu", "-o", "pipefail", "-c", first],
                cwd=ROOT, env=environment, stdout=output, stderr=output, check=False,
            )  # fmt: skip
        text = said.read_text(encoding="utf-8")
        assert done.returncode == 0, text
    finally:
        if (folder / "pid").exists():
            os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
        script.Cluster(folder / "cluster").down()
    for expected in (
        "missing  preemption",
        "there is none: `sublet engine slurm plan` prints it",
        "PartitionName=sublet Nodes=n1,n2 PriorityTier=1 PreemptMode=CANCEL GraceTime=10",
        "PriorityTier=10 PreemptMode=OFF",
        "sacctmgr -i add qos sublet",
        "\nready\n",
        "h200    16",
        "reclaimed",
        "everything adds up",
        "submit_time,start_time,duration_s,gpus,state,job",
        ",8,COMPLETED,",
        "internal    16",  # idle and in use, of how many
    ):
        assert expected in text, f"{expected!r} is not in what the page printed:\n{text}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
