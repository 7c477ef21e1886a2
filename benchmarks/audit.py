"""How long `sublet audit` takes for a large sacct file, and how much memory.

    .venv/bin/python benchmarks/audit.py [--jobs 1000000] [--html] [--json]

It makes a file as sacct prints it, with job arrays, jobs cancelled before they started,
requeued ones, ones that still run and ones without GPUs, in four pools and two hundred
accounts, and runs the command on it in a process of its own.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

HEADER = (
    "JobIDRaw|JobID|JobName|User|Account|Partition|QOS|Submit|Eligible|Start|End|ElapsedRaw|State"
    "|NNodes|AllocTRES|ReqTRES|ExitCode"
)
MODELS = (("a100", 2048, 0.5), ("h100", 1024, 0.25), ("v100", 1024, 0.2), ("l40s", 256, 0.05))
FROM = datetime(2026, 1, 1, tzinfo=UTC)
DAYS = 180


def write(path: Path, jobs: int) -> None:
    """Write a row a job in the order in which they were submitted, and one for each requeue."""
    dice = random.Random(20260101)
    every = DAYS * 86_400 / jobs
    users = [f"user{n:03}" for n in range(500)]
    accounts = [f"lab-{n:03}" for n in range(200)]
    with path.open("w", encoding="utf-8") as file:
        file.write(HEADER + "\n")
        for number in range(jobs):
            submit = FROM + timedelta(seconds=int(number * every))
            file.write(row(number + 1, submit, dice, users, accounts) + "\n")
            if number % 100 == 0:  # requeued, and run again under its number
                again = submit + timedelta(days=15)
                file.write(row(number + 1, again, dice, users, accounts) + "\n")


def row(
    number: int, submit: datetime, dice: random.Random, users: list[str], accounts: list[str]
) -> str:
    model, _, _ = dice.choices(MODELS, [share for _, _, share in MODELS])[0]
    gpus = dice.choices((0, 1, 2, 4, 8, 16, 64), (5, 55, 12, 12, 12, 3, 1))[0]
    wait = int(dice.expovariate(1 / 900))
    run = min(int(dice.lognormvariate(7.0, 1.8)), 14 * 86_400)
    state = dice.choices(
        ("COMPLETED", "FAILED", f"CANCELLED by {dice.randint(1000, 1499)}", "TIMEOUT", "never"),
        (70, 12, 9, 5, 4),
    )[0]
    start, end = submit + timedelta(seconds=wait), submit + timedelta(seconds=wait + run)
    last = FROM + timedelta(days=DAYS)
    begins, ends = f"{start:%Y-%m-%dT%H:%M:%S}", f"{end:%Y-%m-%dT%H:%M:%S}"
    tres = (
        f"billing={8 * gpus or 4},cpu={8 * gpus or 4},mem={64 * gpus or 16}G,node={gpus // 9 + 1}"
    )
    asked = tres + (f",gres/gpu:{model}={gpus},gres/gpu={gpus}" if gpus else "")
    given = asked
    if state == "never":
        state, begins, ends, given = "CANCELLED by 0", "None", f"{start:%Y-%m-%dT%H:%M:%S}", ""
    elif start > last:
        state, begins, ends, given = "PENDING", "Unknown", "Unknown", ""
    elif end > last:
        state, ends = "RUNNING", "Unknown"
    shown = f"{number - number % 7}_{number % 7}" if number % 10 == 0 else str(number)
    moment = f"{submit:%Y-%m-%dT%H:%M:%S}"
    return (
        f"{number}|{shown}|train-{number % 97}|{dice.choice(users)}|{dice.choice(accounts)}|{model}"
        f"|normal|{moment}|{moment}|{begins}|{ends}|{run}|{state}|{gpus // 9 + 1}|{given}|{asked}"
        "|0:0"
    )


def measure(command: list[str]) -> tuple[float, float, int, dict[str, object]]:
    """Return (wall seconds, CPU seconds, peak resident bytes, what it printed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    unit = 1 if platform.system() == "Darwin" else 1024
    return wall, cpu, after.ru_maxrss * unit, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--html", action="store_true", help="write the page as well")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sublet-bench-") as folder:
        file = Path(folder) / "sacct.txt"
        write(file, given.jobs)
        page = ["--html", str(Path(folder) / "audit.html")] if given.html else []
        capacity = [part for model, gpus, _ in MODELS for part in ("--capacity", f"{model}={gpus}")]
        command = [sys.executable, "-m", "sublet", "audit", str(file), "--json", *page, *capacity]
        wall, cpu, peak, printed = measure(command)
        figures: dict[str, object] = {
            "jobs": given.jobs,
            "file_mb": round(file.stat().st_size / 1e6, 1),
            "wall_s": round(wall, 2),
            "cpu_s": round(cpu, 2),
            "peak_mb": round(peak / 1e6),
            "idle_share": printed["total"]["idle_share"],  # type: ignore[index]
            "load_average": os.getloadavg()[0],
        }
    if given.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:14} {value}")


if __name__ == "__main__":
    main()
