"""A simulated run as text: what the GPUs did, who paid, what broke, and plots over the days."""

from collections.abc import Iterator
from typing import Final

from sublet.cli import plots
from sublet.core.money import NANOS
from sublet.simulation.outcome import USES, Outcome
from sublet.simulation.play import Played
from sublet.simulation.report import share
from sublet.simulation.scenario import TIERS

_WIDTH: Final = 60


def page(name: str, played: Played) -> Iterator[str]:
    """Yield the lines of a run's report, without its plots."""
    outcome = played.outcome
    hours = outcome.gpu_hours
    every = sum(hours.values())
    yield f"{name}, seed {played.seed}: {played.variant.name}"
    yield ""
    yield "GPU-hours"
    for use in USES:
        part = hours[use] / every if every else 0.0
        yield f"  {use:<14} {hours[use]:>16,.0f}  {_percent(part):>7}  {plots.bar(part, width=30)}"
    yield ""
    yield f"{'USD':<16} {'revenue':>16} {'credits':>14}"
    for place, tier in enumerate(TIERS):
        taken, back = outcome.revenue_by_tier[place], outcome.credits_by_tier[place]
        yield f"  {tier:<14} {taken / NANOS:>16,.0f} {back / NANOS:>14,.0f}"
    yield (
        f"  net {outcome.revenue_nanos / NANOS:,.0f}, which is {_percent(share(played))} of what a"
        f" clairvoyant could have earned ({played.clairvoyant_nanos / NANOS:,.0f})"
    )
    yield ""
    yield (
        f"admitted {sum(outcome.admitted.values()):,}; refused "
        + (", ".join(f"{n:,} {why.replace('_', ' ')}" for why, n in outcome.refused.items()) or "0")
    )
    yield (
        f"internal jobs: {outcome.reclaims:,} reclaims; from waiting to free"
        f" {outcome.waits['p50']:.0f} s median, {outcome.waits['p99']:.0f} s p99,"
        f" {outcome.waits['max']:.0f} s at most; shortage {_percent(outcome.shortage_share, 3)}"
    )
    yield (
        f"leases: {outcome.evictions:,} evictions, {outcome.worst_evictions} of one at most,"
        f" {outcome.work_lost_gpu_hours:,.0f} GPU-hours of work since the last checkpoints; "
        + ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in outcome.counts.items() if n)
    )
    yield ""
    yield from _days(outcome)
    laws = ", ".join(f"{law} {count}" for law, count in outcome.broken_laws.items())
    yield f"laws broken in {outcome.checks:,} checks: {outcome.violations} ({laws})"
    yield from outcome.messages
    yield f"history {outcome.history[:16]}"


def _days(outcome: Outcome) -> Iterator[str]:
    """Draw the fleet over the days: internal use below, what was sold above, idle as a shade."""
    daily = outcome.daily
    healthy = daily[:-1].sum(axis=0)
    internal = daily[USES.index("internal")]
    sold = daily[1 : 1 + len(TIERS)].sum(axis=0)
    most = float(healthy.max())
    for title, used, whole in (
        ("internal jobs, of healthy GPUs", internal, healthy),
        ("leases, of what internal jobs leave", sold, healthy - internal),
    ):
        scale = most if used is internal else float((healthy - internal).max())
        yield f"{title} (full height {scale / 24:,.0f} GPUs)"
        columns = _spread(len(used))
        for line in plots.area(
            [float(used[at]) for at in columns], [float(whole[at]) for at in columns], height=6
        ):
            yield f"  {line}"
        yield "  " + plots.axis(["day 1", f"day {len(used)}"], width=len(columns))
        yield ""


def _spread(days: int) -> list[int]:
    """Return the day of each column: a day some columns wide, or some days in one column."""
    width = min(max(days, _WIDTH // days * days), _WIDTH)
    return [column * days // width for column in range(width)]


def _percent(part: float, digits: int = 1) -> str:
    return f"{100 * part:.{digits}f} %"
