"""What a notice costs: an internal job waits for as long, so a longer one is dearer.

A schedule says per pool how many per cent of the price book's price are paid from a notice on.
What is shorter than its first step is sold at the book's price. No step is below 100 per cent, so
a price that stands at or above its floor stays there, whatever the notice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sublet.core.errors import Invalid
from sublet.core.money import Rate

WHOLE: Final = 100
_MOST_PERCENT: Final = 1_000
_MOST_STEPS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From this notice on, so many per cent of the price book's price."""

    notice: timedelta
    percent: int

    def of(self, rate: Rate) -> Rate:
        """Return the price of a notice of this step, exactly."""
        return Rate(nanos=rate.nanos * self.percent, per=rate.per * WHOLE, currency=rate.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A pool's schedule, by rising notice."""

    id: int
    steps: tuple[Step, ...]

    def step(self, notice: timedelta) -> Step | None:
        """Return the step of a notice; None where the book's price holds as it is."""
        reached = [step for step in self.steps if step.notice <= notice]
        return reached[-1] if reached and reached[-1].percent != WHOLE else None


def check(steps: Sequence[Step]) -> None:
    """Raises Invalid: it is no schedule; names the step that is wrong."""
    if len(steps) > _MOST_STEPS:
        raise Invalid(f"steps: a schedule has at most {_MOST_STEPS}, not {len(steps)}")
    before: Step | None = None
    for number, step in enumerate(steps, start=1):
        seconds = step.notice // timedelta(seconds=1)
        if not WHOLE <= step.percent <= _MOST_PERCENT:
            raise Invalid(
                f"step {number}: {step.percent} per cent of the price must lie in"
                f" {WHOLE}…{_MOST_PERCENT}"
            )
        if seconds < 1:
            raise Invalid(f"step {number}: a notice is a second or longer")
        if before is not None and step.notice <= before.notice:
            raise Invalid(f"step {number}: its notice, {seconds} s, is not longer than the last")
        if before is not None and step.percent < before.percent:
            raise Invalid(
                f"step {number}: a longer notice costs no less: {step.percent} per cent after"
                f" {before.percent}"
            )
        before = step
