"""How fast internal jobs get their GPUs back on Slurm: with Sublet, and with plain Slurm alone.

    python benchmarks/slurm.py            a table
    python benchmarks/slurm.py --json     one flat object

As root, with Debian's slurm-wlm and munge. It starts real clusters by scripts/slurm-cluster, a
PostgreSQL and `sublet control`, and takes turns between Sublet and plain Slurm in one run. An
internal job is submitted with sbatch while leases, or plain jobs of the preemptible partition,
hold every GPU; its first line writes down when it runs. Seconds are wall time; everything shares
this machine, so the load and the clients are part of every figure.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import psycopg  # noqa: E402
from tests.slurm.cluster import Cluster, cluster, script, until  # noqa: E402
from tests.slurm.control import Control, instant  # noqa: E402

from sublet.core.clock import SystemClock  # noqa: E402
from sublet.core.postgres import Postgres  # noqa: E402
from sublet.engine.slurm import reading, view  # noqa: E402
from sublet.engine.slurm.watch import Watch  # noqa: E402

POLITE: Final = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"
DEAF: Final = "trap '' TERM; echo up; while :; do sleep 0.05; done"
NOTICE: Final = 10
JOBS: Final = 50_000


class Stage:
    """A cluster, and who holds its GPUs in turn."""

    def __init__(self, on: Cluster, folder: Path, database_url: str) -> None:
        self.on = on
        self.folder = folder
        self.nodes = on.run("sinfo", "-h", "-N", "-p", "sublet", "-o", "%N").splitlines()
        self.control = Control(on, folder, database_url).start()
        tenant = self.control.api("GET", "/v1/tenants")["items"]
        for found in tenant:
            self.control.api("POST", f"/v1/tenants/{found['id']}/credits", {"amount_usd": "1000"})
        self.count = 0

    def internal(self, gpus: int) -> float:
        """Submit a job for so many GPUs; return the seconds until its first line ran."""
        self.count += 1
        mark = self.folder / f"mark-{self.count}"
        each = min(gpus, 8)
        began = time.time()
        job = self.on.run(
            "sbatch", "--parsable", "-p", "internal", f"--nodes={gpus // each}",
            f"--gres=gpu:{each}", "-o", "/dev/null",
            f"--wrap=date +%s.%N > {mark}.new; mv {mark}.new {mark}; sleep 120",
        )  # fmt: skip
        until(mark.exists, seconds=120, what=f"internal job {job}")
        waited = float(mark.read_text()) - began
        self.on.run("scancel", job)
        self.empty_of("internal")
        return waited

    def empty_of(self, partition: str) -> None:
        until(
            lambda: not self.on.run("squeue", "-h", "-p", partition, "-o", "%i"),
            what=f"partition {partition} to be empty",
        )

    def running(self) -> int:
        return len(self.on.run("squeue", "-h", "-p", "sublet", "-t", "R", "-o", "%i").split())

    def lease_all(self, command: str, **more: object) -> list[str]:
        """Fill what is free with leases of eight GPUs; return those that were made."""
        missing = len(self.nodes) - self.running()
        leases = [
            until(lambda: self._lease(command, more), what="room for a lease")
            for _ in range(missing)
        ]
        for lease in leases:
            self.control.reach(lease, "running", seconds=300)
            until(lambda lease=lease: "up" in self.control.logs(lease), what="its command")
        return leases

    def _lease(self, command: str, more: dict[str, object]) -> str | None:
        body = {"command": ["sh", "-c", command], "gpus": 8, "max_seconds": 3600} | more
        return self.control.api("POST", "/v1/leases", body, tenant=True).get("id")

    def end_leases(self) -> None:
        for found in self.control.api("GET", "/v1/leases?live=true&limit=1000")["items"]:
            self.control.api("DELETE", f"/v1/leases/{found['id']}")
        self.on.run("scancel", "--signal=KILL", "--full", "-p", "sublet", "-u", "root")
        self.empty_of("sublet")
        until(
            lambda: not self.control.api("GET", "/v1/leases?live=true")["items"],
            what="leases to end",
        )

    def submit_all(self, command: str) -> None:
        """Fill what is free with plain jobs, whose step hears of its preemption at once."""
        missing = len(self.nodes) - self.running()
        for _ in range(missing):
            self.on.run(
                "sbatch", "--parsable", "-p", "sublet", "--gres=gpu:8", "--no-requeue",
                "-o", "/dev/null", f'--wrap=srun sh -c "{command}"',
            )  # fmt: skip
        until(lambda: self.running() == len(self.nodes), what="plain jobs to run")
        steps = ["squeue", "-h", "-s", "-p", "sublet", "-o", "%i"]
        until(
            lambda: (
                len([s for s in self.on.run(*steps).split() if s.endswith(".0")]) >= len(self.nodes)
            ),
            what="their steps",
        )
        time.sleep(0.5)  # until the shell of the last step has set its trap

    def kill_plain(self) -> None:
        self.on.run("scancel", "--signal=KILL", "--full", "-p", "sublet", "-u", "root")
        self.on.run("scancel", "-p", "sublet", "-u", "root")
        self.empty_of("sublet")


def measure(stage: Stage, rounds: int, deaf: int, figures: dict[str, float]) -> None:
    empty = [stage.internal(8) for _ in range(max(rounds // 2, 3))]
    spread("empty_s", empty, figures)

    order: list[float] = []
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(-(-rounds // 5)):  # by turns, so that the machine's load hits both
        for _ in range(min(5, rounds)):
            for lease in stage.lease_all(POLITE):
                shown = stage.control.show(lease)
                started = stage.control.shared / lease / "status.json"
                up = json.loads(started.read_text())["started_at"]
                order.append((instant(up) - instant(shown["requested_at"])).total_seconds())
            ours.append(stage.internal(8))
        stage.end_leases()
        for _ in range(min(5, rounds)):
            stage.submit_all(POLITE)
            plain.append(stage.internal(8))
        stage.kill_plain()
    spread("cooperative_s", ours, figures)
    spread("slurm_cooperative_s", plain, figures)
    figures["order_to_usable_s_p50"] = statistics.median(order)

    waits = []
    for _ in range(deaf):
        stage.lease_all(DEAF)
        waits.append(stage.internal(8))
    stage.end_leases()
    figures[f"ignoring_notice{NOTICE}_s_max"] = max(waits, default=0.0)
    waits = []
    for _ in range(deaf):
        stage.submit_all(DEAF)
        waits.append(stage.internal(8))
    stage.kill_plain()
    figures[f"slurm_ignoring_notice{NOTICE}_s_max"] = max(waits, default=0.0)


def measure_resume(stage: Stage, rounds: int, figures: dict[str, float]) -> None:
    """From the end of the internal job, as it wrote it down, to the lease's command running again."""
    waits = []
    stage.lease_all(POLITE, resumable=True)
    for number in range(rounds):
        mark = stage.folder / f"left-{number}"
        job = stage.on.run(
            "sbatch", "--parsable", "-p", "internal", "--gres=gpu:8", "-o", "/dev/null",
            f"--wrap=sleep 2; date +%s.%N > {mark}.new; mv {mark}.new {mark}",
        )  # fmt: skip
        until(mark.exists, what=f"internal job {job} to end")
        left = float(mark.read_text())
        begun = until(lambda left=left: _back(stage, left), what="the lease to be back")
        waits.append(begun - left)
    figures["resume_s_p50"] = statistics.median(waits)
    stage.end_leases()


def _back(stage: Stage, left: float) -> float | None:
    for found in stage.control.api("GET", "/v1/leases?live=true&limit=1000")["items"]:
        status = stage.control.shared / found["id"] / "status.json"
        if found["resumes"] and status.exists():
            begun = json.loads(status.read_text())["started_at"]
            if begun and instant(begun).timestamp() > left:
                return instant(begun).timestamp()
    return None


def measure_gangs(stage: Stage, sizes: list[int], figures: dict[str, float]) -> None:
    for gpus in sizes:
        stage.lease_all(POLITE)
        figures[f"gang{gpus}_s"] = stage.internal(gpus)
        stage.end_leases()
        stage.submit_all(POLITE)
        figures[f"slurm_gang{gpus}_s"] = stage.internal(gpus)
        stage.kill_plain()


def measure_load(stage: Stage, figures: dict[str, float], seconds: float = 10.0) -> None:
    """Processor time of slurmctld while Sublet looks at an unchanging cluster, and without it."""
    pid = int((stage.on.folder / "run" / "slurmctld.own").read_text())

    def used() -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def share() -> float:
        began, before = time.monotonic(), used()
        time.sleep(seconds)
        return (used() - before) / (time.monotonic() - began) * 100

    stage.lease_all(POLITE)
    figures["slurmctld_percent_of_a_core_with_sublet"] = share()
    stage.control.stop()
    figures["slurmctld_percent_of_a_core_without"] = share()
    stage.control.start()
    stage.end_leases()


def measure_observe(figures: dict[str, float]) -> None:
    """One pass over clusters of emulated size: what Slurm prints, read and judged."""
    for count in (50, 500, 5000):
        jobs = JOBS * count // 5000
        text = "\n".join(_job_line(number, count) for number in range(jobs)) + "\n"
        nodes = "\n".join(
            f"n{number:05}|mixed|gpu:h200:8|32/96/0/128|1048576|n{number:05}|none"
            for number in range(count)
        )
        watch = Watch(cluster="emulated")
        now = SystemClock().now()
        times, used = [], []
        for _ in range(3):
            began, cpu = time.monotonic(), time.process_time()
            seen = reading.read_jobs(text)
            there = reading.read_nodes(nodes)
            watch.look(view.internal_demand(seen, there, partition="sublet"), seen, now=now)
            view.nodes_of(there, seen)
            view.free_by_node(there, seen, "h200")
            times.append(time.monotonic() - began)
            used.append(time.process_time() - cpu)
        figures[f"observe_s_{count}"] = statistics.median(times)
        figures[f"observe_cpu_s_{count}"] = statistics.median(used)  # whoever else is at work


def _job_line(number: int, nodes: int) -> str:
    running = number < nodes
    state = "RUNNING|None" if running else "PENDING|Priority"
    started = "2026-01-01T00:00:10" if running else "N/A"
    node = f"n{number:05}" if running else ""
    tres = "cpu=32,mem=256G,node=1,billing=32,gres/gpu=4"
    return (
        f"{number + 1}|{state}|internal|2026-01-01T00:00:00|2026-01-01T00:00:00|{started}|N/A|N/A"
        f"|{tres}|gres:gpu:4|N/A|N/A|1|1|{node}|0|0|train-{number}"
    )


def tell(figures: dict[str, float]) -> None:
    """Say on stderr what is known so far: the whole takes many minutes."""
    print({name: round(value, 3) for name, value in figures.items()}, file=sys.stderr, flush=True)


def spread(name: str, values: list[float], figures: dict[str, float]) -> None:
    ordered = sorted(values)
    figures[f"{name}_p50"] = statistics.median(ordered)
    # Of few values the 99th percentile is the largest.
    figures[f"{name}_p99"] = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


@contextmanager
def staged(options: tuple[str, ...], url: Callable[[], str]) -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    try:
        with cluster(*options) as on:
            stage = Stage(on, folder, url())
            try:
                yield stage
                figures = stage.control.verify()
                assert figures["differences"] == []
            finally:
                stage.control.stop()
                on.clear()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=20, help="of cooperative victims; 0: gangs only"
    )
    parser.add_argument("--deaf", type=int, default=3, help="rounds of victims that ignore it")
    parser.add_argument("--gangs", default="64,256", help="sizes in GPUs; empty for none")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if (lack := script.missing(accounting=False)) is not None:
        sys.exit(lack)
    os.environ.pop("SLURM_CONF", None)
    figures: dict[str, float] = {"load_average_before": os.getloadavg()[0]}
    folder = Path(tempfile.mkdtemp(prefix="sublet-bench-"))
    server = Postgres(folder / "postgres")
    server.start()
    number = iter(range(1000))

    def database() -> str:
        name = f"bench{next(number)}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return re.sub(r"/[^/?]*(\?|$)", rf"/{name}\1", server.url)

    try:
        measure_observe(figures)
        options = ("--nodes", "4", "--gpus", "8", "--notice", str(NOTICE))
        if given.rounds:
            with staged(options, database) as stage:
                measure(stage, given.rounds, given.deaf, figures)
                tell(figures)
                measure_resume(stage, max(given.rounds // 3, 3), figures)
                measure_load(stage, figures)
                tell(figures)
        sizes = [int(size) for size in given.gangs.split(",") if size]
        if sizes:
            nodes = ("--nodes", str(max(sizes) // 8), "--gpus", "8", "--notice", str(NOTICE))
            with staged(nodes, database) as stage:
                measure_gangs(stage, sizes, figures)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    figures["load_average_after"] = os.getloadavg()[0]
    if given.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
        return
    for name, value in figures.items():
        print(f"{name:44} {value:9.3f}")


if __name__ == "__main__":
    main()
