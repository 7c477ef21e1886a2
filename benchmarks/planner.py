"""The planner against what others do, on real clusters and made-up ones; and how fast it is.

    python benchmarks/planner.py                      # every table, a few minutes
    python benchmarks/planner.py --data DIR --part clusters

Parts: clusters, frontier, prices, notices, forecast, made-up, speed. Clusters whose file is not in the
folder are left out, and said to be. Nothing is tuned here: all run with the default settings.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command does, before numpy is loaded

import numpy as np
from numpy.typing import NDArray

from sublet.planner import bounds
from sublet.planner.backtest import Setting, backtest, prepare
from sublet.planner.band import BAND, band_scores
from sublet.planner.curve import Columns, Curve, read_curve
from sublet.planner.outlook import outlooks
from sublet.planner.plan import Policy, learn, make_plan
from sublet.planner.policies import POLICIES
from sublet.planner.portfolio import DEFAULT_PRICES, Prices
from sublet.planner.score import Score, Share, ratio, score
from sublet.planner.windows import LENGTHS, days, span, summed, windows

DAY: Final = 86_400
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    name: str
    file: str
    columns: Columns
    start: str
    end: str
    skip_days: tuple[str, ...] = ()


CLUSTERS: Final = (
    Cluster(
        name="Venus",
        file="helios_venus_10min.csv.gz",
        columns=Columns(),
        start="2020-08-01",
        end="2020-09-28",
        skip_days=("2020-05-10", "2020-05-16"),
    ),
    Cluster(
        name="Philly",
        file="philly_nodes_1min.csv.gz",
        columns=Columns(total="nodes_total", running="nodes_active"),
        start="2017-12-01",
        end="2017-12-15",
    ),
    Cluster(
        name="Alibaba A100",
        file="alibaba_gfs_a100_hourly.csv.gz",
        columns=Columns(time="hour", running="gpus_demanded"),
        start="2928",  # hours: four of its six months
        end="4419",
    ),
)
PRICES: Final = {
    "default 1.00/0.85/0.70/0.50": DEFAULT_PRICES,
    "flat 0.65/0.60/0.55/0.50": Prices(firm={1: 0.55, 4: 0.60, 24: 0.65}, interruptible=0.50),
    "steep 1.00/0.70/0.50/0.20": Prices(firm={1: 0.50, 4: 0.70, 24: 1.00}, interruptible=0.20),
    "short is dear 0.80/1.00/1.20/0.30": Prices(
        firm={1: 1.20, 4: 1.00, 24: 0.80}, interruptible=0.30
    ),
    "spot is dear 1.00/0.90/0.85/0.80": Prices(
        firm={1: 0.85, 4: 0.90, 24: 1.00}, interruptible=0.80
    ),
}
# Those that earned most somewhere; the others are in the tables of all policies.
RIVALS: Final = ("interruptible", "last", "max-6h", "max-24h", "marginal-92", "lightgbm-92")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", action="append", choices=list(PARTS))
    chosen = parser.parse_args()
    found = list(load(chosen.data))
    for part in chosen.part or PARTS:
        PARTS[part](found)
    return 0


def load(folder: Path) -> Iterator[tuple[Cluster, Curve, Setting]]:
    for cluster in CLUSTERS:
        path = folder / cluster.file
        if not path.exists():
            print(f"left out: {cluster.name}, because {path} is not there", file=sys.stderr)
            continue
        curve = read_curve(path, columns=cluster.columns)
        setting = Setting(
            start=curve.instant(cluster.start),
            end=curve.instant(cluster.end),
            skip_days=[curve.instant(day) for day in cluster.skip_days],
        )
        yield cluster, curve, setting


Found = list[tuple[Cluster, Curve, Setting]]


def clusters(found: Found) -> None:
    """All policies on each cluster, and both bounds."""
    for cluster, curve, setting in found:
        report = backtest(curve, replace(setting, policies=list(POLICIES)))
        print(f"\n### {cluster.name}\n")
        print(
            "| policy | net revenue | 1 h kept / broken | 4 h kept / broken | 24 h kept / broken"
            " | portfolio broken | evictions a GPU-day | internal jobs short |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for one in report.scores:
            print(f"| `{one.name}` | {interval(one.revenue)} | {firm(one)} | {rest(one)} |")
        clean = curve.without_days(setting.skip_days)
        scored = span(clean, setting.start or 0, setting.end or 0)
        grids = {hours: windows(clean, hours, scored) for hours in LENGTHS}
        fair = bounds.on_grid(clean, scored, grids, DEFAULT_PRICES).sum()
        free = bounds.any_step(clean, scored, DEFAULT_PRICES)
        print(
            f"\nA clairvoyant that may start windows at any time earns {free / fair:.3f} times"
            " what one on the same grid earns."
        )


def frontier(found: Found) -> None:
    """Kept against broken, as the confidence is moved."""
    for cluster, curve, setting in found:
        print(f"\n### {cluster.name}: kept / broken at each confidence\n")
        print("| policy | confidence | 1 h | 4 h | 24 h | oversold windows 1 / 4 / 24 h |")
        print("|---|---:|---:|---:|---:|---:|")
        for name in ("default", "marginal", "lightgbm"):
            for confidence in (0.90, 0.95, 0.97, 0.98, 0.99, 0.995):
                report = backtest(curve, replace(setting, policies=[name], confidence=confidence))
                one = report.scores[0]
                over = " / ".join(f"{100 * f.oversold.value:.1f}" for f in one.firm.values())
                print(f"| `{name}` | {confidence} | {firm(one)} | {over} % |")


def prices(found: Found) -> None:
    """Net revenue at other prices, ours and the best of the others."""
    for cluster, curve, setting in found:
        print(
            f"\n### {cluster.name}: net revenue at other prices (24 h / 4 h / 1 h / interruptible)\n"
        )
        print("| prices | `default` | next best |")
        print("|---|---:|---|")
        _, task = prepare(curve, setting)
        fixed = {name: POLICIES[name](task) for name in RIVALS}  # prices do not move them
        for name, paid in PRICES.items():
            field, task = prepare(curve, replace(setting, prices=paid))
            ours = score("default", POLICIES["default"](task), field).revenue
            others = [score(rival, told, field) for rival, told in fixed.items()]
            best = max(others, key=lambda one: one.revenue.value)
            print(f"| {name} | {percent(ours)} | `{best.name}` {percent(best.revenue)} |")


def notices(found: Found) -> None:
    """How long internal jobs are short, and wait at all, at each notice."""
    print("\n### Internal use that waited: longer than the notice / at all\n")
    waits = (0, 5, 10, 30)
    print("| cluster | policy | " + " | ".join(f"{wait} min" for wait in waits) + " |")
    print("|---|---|" + "---:|" * len(waits))
    for cluster, curve, setting in found:
        for name in ("default", "everything", "never-preempt"):
            cells = []
            for wait in waits:
                asked = replace(setting, policies=[name], notice_seconds=60 * wait)
                one = backtest(curve, asked).scores[0]
                cells.append(f"{100 * one.shortage.value:.3f} / {100 * one.waited.value:.3f} %")
            print(f"| {cluster.name} | `{name}` | " + " | ".join(cells) + " |")


def forecast(found: Found) -> None:
    """Coverage and pinball loss of the highest demand in a window, with intervals by days."""
    print("\n### Forecast of the highest demand in a window: coverage (interval), pinball loss\n")
    print("| cluster | window | " + " | ".join(f"{share:.0%}" for share in BAND) + " |")
    print("|---|---:|" + "---:|" * len(BAND))
    for cluster, raw, setting in found:
        curve = raw.without_days(setting.skip_days)
        scored = span(curve, setting.start or 0, setting.end or 0)
        for hours, forecasts in outlooks(curve, LENGTHS).items():
            slots = windows(curve, hours, scored).slots
            scores = band_scores(forecasts, np.searchsorted(forecasts.slots, slots))
            starts = days(curve, scored)[slots - scored.first]
            cells = []
            for one in scores.values():
                known = ~np.isnan(one.missed_gpus)
                below = (one.missed_gpus[known] <= 0).astype(np.float64)
                count = int(starts.max()) + 1
                cover = ratio(
                    summed(below, starts[known], count),
                    summed(np.ones(len(below)), starts[known], count),
                )
                cells.append(f"{interval(cover)}, {one.pinball_gpus:.2f}")
            print(f"| {cluster.name} | {hours} h | " + " | ".join(cells) + " |")


def made_up(_found: Found) -> None:
    """Clusters that nothing was tuned on, from the second week on."""
    print("\n### Made-up clusters, 90 days, scored from the second week on\n")
    print("| cluster | idle | net revenue | next best | 1 h kept / broken | 4 h | 24 h |")
    print("|---|---:|---:|---|---:|---:|---:|")
    for name, curve in invented(np.random.default_rng(77)):
        report = backtest(curve, Setting(policies=["default", *RIVALS]))
        ours = next(one for one in report.scores if one.name == "default")
        best = next(one for one in report.scores if one.name != "default")
        idle = np.nansum(curve.idle) / np.nansum(curve.total)
        print(
            f"| {name} | {idle:.0%} | {percent(ours.revenue)} |"
            f" `{best.name}` {percent(best.revenue)} | {firm(ours)} |"
        )


def speed(found: Found) -> None:
    """Seconds and megabytes."""
    print("\n### Speed\n")
    for cluster, curve, setting in found:
        began, wall = time.process_time(), time.monotonic()
        backtest(curve, setting)
        print(
            f"{cluster.name} back-test of `default`: {time.monotonic() - wall:.1f} s,"
            f" {time.process_time() - began:.1f} s of CPU"
        )
    pools = 1_000
    dice = np.random.default_rng(5)
    curves = [
        make(jobs(dice, 8, 300, 4.0, SMALL, 2.0, 1.2), 220.0, 300, keep=False) for _ in range(20)
    ]
    policy = Policy()
    began = time.process_time()
    models = [learn(curve, policy) for curve in curves]
    print(
        f"learning a pool of 8 days by 5 minutes: {(time.process_time() - began) / 20:.2f} s of CPU"
    )
    began = time.process_time()
    plans = [make_plan(curves[number % 20], models[number % 20]) for number in range(pools)]
    took = time.process_time() - began
    print(f"one pool's plan: {1000 * took / pools:.1f} ms of CPU")
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    slots = sum(len(plan.interruptible) for plan in plans)
    print(
        f"a fleet of {pools} pools and {pools * 220:,} GPUs, {slots:,} slots of 5 minutes:"
        f" {took:.1f} s of CPU, {megabytes:.0f} MB at most"
    )


SMALL: Final = (np.array([1, 2, 4, 8]), np.array([0.5, 0.15, 0.15, 0.2]))
WIDE: Final = (np.array([1, 8, 16, 32, 64]), np.array([0.5, 0.3, 0.1, 0.06, 0.04]))
HALF: Final = (np.array([128]), np.array([1.0]))


def jobs(
    dice: np.random.Generator,
    days: float,
    step_seconds: int,
    an_hour: float,
    sizes: tuple[NDArray[np.int64], Floats],
    hours: float,
    spread: float,
    *,
    daily: float = 0.0,
    weekly: float = 0.0,
    wander: float = 0.0,
    drift: float = 0.0,
) -> Floats:
    """Return GPUs in use by jobs that arrive at random and run for log-normal times."""
    steps = int(days * DAY // step_seconds)
    at = np.arange(steps) * step_seconds / 3600
    noise = dice.normal(0, wander * np.sqrt(2 * step_seconds / 3600 / 48), steps)
    mood = np.zeros(steps)
    for step in range(1, steps):
        mood[step] = mood[step - 1] * (1 - step_seconds / 3600 / 48) + noise[step]
    rate = an_hour * np.exp(
        mood
        + daily * np.cos((at % 24 - 14) / 24 * 2 * np.pi)
        - weekly * ((at // 24) % 7 >= 5)
        + drift * at / (24 * days)
    )
    starts = np.repeat(np.arange(steps), dice.poisson(rate * step_seconds / 3600))
    gpus = dice.choice(sizes[0], len(starts), p=sizes[1]).astype(np.float64)
    runs = np.maximum(1, dice.lognormal(np.log(hours), spread, len(starts)) * 3600 / step_seconds)
    change = np.zeros(steps + 1)
    np.add.at(change, starts, gpus)
    np.add.at(change, np.minimum(starts + runs.astype(np.int64), steps), -gpus)
    return np.cumsum(change)[:steps]


def make(demand: Floats, gpus: float | Floats, step_seconds: int, *, keep: bool) -> Curve:
    """Return a curve; what does not fit waits, unless `keep` says that demand may exceed."""
    total = np.broadcast_to(np.asarray(gpus, dtype=np.float64), demand.shape).copy()
    running = demand.astype(np.float64) if keep else np.minimum(demand, total)
    return Curve(start=1_767_225_600, step_seconds=step_seconds, total=total, running=running)


def invented(dice: np.random.Generator) -> Iterator[tuple[str, Curve]]:
    """Clusters that differ in all that matters: size, bursts, gangs, seasons, drift, capacity."""
    step = 600
    bursty = jobs(dice, 90, step, 3, SMALL, 1.5, 1.2, daily=0.8, weekly=0.5, wander=0.5)
    yield "64 GPUs, bursts", make(bursty, 64, step, keep=False)
    quiet = jobs(dice, 90, step, 4, SMALL, 2, 1.2, daily=0.5, wander=0.3)
    gangs = jobs(dice, 90, step, 0.012, HALF, 8, 0.5)
    yield "256 GPUs, jobs of half of them", make(quiet + gangs, 256, step, keep=False)
    steady = jobs(dice, 90, step, 60, SMALL, 3, 1.3, daily=0.5, weekly=0.8, drift=0.3, wander=0.2)
    yield "1,200 GPUs, weeks and growth", make(steady, 1_200, step, keep=False)
    above = jobs(dice, 90, 3_600, 40, WIDE, 3, 1.5, wander=0.5, drift=0.5)
    yield "2,600 GPUs by the hour, demand above them", make(above, 2_600, 3_600, keep=True)
    wide = jobs(dice, 90, step, 20, WIDE, 2, 1.3, wander=0.3, daily=0.3)
    capacity = np.full(len(wide), 1_200.0)
    capacity[len(wide) // 3 :] = 1_500
    for day in range(10, 90, 17):
        capacity[day * 144 : day * 144 + 48] -= 400
    yield "1,200, then 1,500 GPUs, maintenance", make(wide, capacity, step, keep=False)
    calm = jobs(dice, 90, step, 5, SMALL, 2, 1.0, wander=0.1)
    storm = jobs(dice, 90, step, 2, WIDE, 1, 1.0, wander=1.2)
    storm[: len(storm) // 2] *= 0.1
    yield "300 GPUs, calm and then not", make(calm + np.round(storm), 300, step, keep=False)
    long = jobs(dice, 90, step, 0.3, WIDE, 48, 1.2, wander=0.5)
    yield "400 GPUs, jobs of days", make(long, 400, step, keep=False)
    few = jobs(dice, 90, step, 0.3, (np.array([1, 2, 4]), np.array([0.5, 0.3, 0.2])), 3, 1.0)
    yield "8 GPUs", make(few, 8, step, keep=False)
    huge = jobs(dice, 60, 300, 900, WIDE, 4, 1.6, wander=0.15, daily=0.2)
    yield (
        "60,000 GPUs",
        make(huge, 60_000 if huge.mean() < 60_000 else 1.3 * huge.mean() // 1, 300, keep=False),
    )
    month = jobs(dice, 28, step, 10, WIDE, 2, 1.3, wander=0.4, daily=0.5, weekly=0.5)
    yield "500 GPUs, four weeks only", make(month, 500, step, keep=False)


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} %"


def interval(share: Share) -> str:
    return f"{percent(share)} ({100 * share.low:.1f}-{100 * share.high:.1f})"


def firm(one: Score) -> str:
    return " | ".join(
        f"{100 * length.kept_of_clairvoyant.value:.1f} / {100 * length.broken.value:.2f}"
        f" ({100 * length.broken.low:.1f}-{100 * length.broken.high:.1f})"
        for length in one.firm.values()
    )


def rest(one: Score) -> str:
    return (
        f"{100 * one.broken.value:.2f} % | {one.evictions_per_gpu_day.value:.2f} |"
        f" {100 * one.shortage.value:.3f} %"
    )


PARTS: Final[dict[str, Callable[[Found], None]]] = {
    "clusters": clusters,
    "frontier": frontier,
    "prices": prices,
    "notices": notices,
    "forecast": forecast,
    "made-up": made_up,
    "speed": speed,
}

if __name__ == "__main__":
    sys.exit(main())
