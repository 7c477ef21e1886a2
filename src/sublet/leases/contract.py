"""A contract: capacity for months or years, by ramp step, paid used or not.

Each step is a window of its own price and number of GPUs; the next begins where it ends. What is
owed falls due a day at a time, counted from the start of each step; what is missing to the minimum
falls due at the end. Capacity that is late costs less: what is not paid for it is a line of its own, due
with the day. So a bill from any instant to another is what fell due between them, and bills
that follow each other add up to one for all of their time. So is what was taken back again, from
then until its step ends, for as long as the contract lasts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sublet.core.errors import Invalid, Refused
from sublet.core.money import Money, Rate
from sublet.fleet.coming import Capacity
from sublet.leases.reservation import DAY_SECONDS, broken_credit

LONGEST: Final = timedelta(days=20 * 366)
_DAY: Final = timedelta(seconds=DAY_SECONDS)
_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """So many GPUs from then on, at a price, until the next step or the end."""

    starts_at: datetime
    gpus: int
    rate: Rate  # of a GPU-second


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """So many GPUs of a step were there at once, from then on: more than ever before."""

    place: int  # of the step
    at: datetime  # a whole second
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """So many GPUs of a step were there, and were taken back."""

    id: UUID
    place: int  # of the step
    at: datetime
    gpus: int
    lease_id: UUID | None = None  # that gave way, if one did


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """GPUs of a step that were not there yet."""

    gpus: int
    start: datetime
    end: datetime  # half-open


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    id: UUID
    tenant_id: UUID
    pool: str
    name: str
    steps: tuple[Step, ...]
    ends_at: datetime
    signed_at: datetime
    notice: timedelta  # of its leases
    minimum: Money  # that is paid at least, over all of its time
    shortfall_percent: int  # of the price of what is not delivered, given back
    notice_days: int  # before the tenant can end it
    recall_days: int | None  # before the operator can take it back; None: it has no such right
    renewal_days: int  # by which it goes on, unless somebody ends it; 0: it ends
    late_percent: int = 100  # of the price of what is late, which is not paid
    late_days: int | None = None  # so late, the tenant may end it at once; None: it may not
    missing_percent: int = 100  # of what is missing to the minimum, which the tenant owes
    deliveries: tuple[Delivery, ...] = ()  # of its steps, so far, in order of time
    breaks: tuple[Break, ...] = ()  # of its promise, so far
    ended_by: str | None = None  # before its time: 'tenant', 'operator', or 'late': by the tenant
    closed: bool = False

    @property
    def starts_at(self) -> datetime:
        return self.steps[0].starts_at

    @property
    def most_gpus(self) -> int:
        return max(step.gpus for step in self.steps)

    def end_of(self, place: int) -> datetime:
        """Return where step `place` ends."""
        if place + 1 < len(self.steps):
            return min(self.steps[place + 1].starts_at, self.ends_at)
        return self.ends_at

    def delivered(self, place: int) -> int | None:
        """Return how many GPUs of step `place` were there at once so far; None: it has not begun."""
        there = [delivery.gpus for delivery in self.deliveries if delivery.place == place]
        return max(there, default=None)

    def late(self, place: int) -> list[Late]:
        """Return what of step `place` was not there, and when; nothing of what nobody saw."""
        step, end = self.steps[place], self.end_of(place)
        there = [delivery for delivery in self.deliveries if delivery.place == place]
        ends = [*(other.at for other in there[1:]), end] if there else []
        found = []
        for one, then in zip(there, ends, strict=True):
            start, until = max(one.at, step.starts_at), min(then, end)
            if one.gpus < step.gpus and start < until:
                found.append(Late(gpus=step.gpus - one.gpus, start=start, end=until))
        return found

    def is_too_late(self, now: datetime) -> bool:
        """Say whether the tenant may end it at once, since GPUs of a step are so late."""
        return self.late_days is not None and any(
            late.start <= now < late.end
            and late.end == self.end_of(place)
            and now >= step.starts_at + self.late_days * _DAY
            for place, step in enumerate(self.steps)
            for late in self.late(place)
        )

    def check(self, *, capacity: Capacity, now: datetime) -> None:
        """Hold it to what can be signed at all.

        Args:
            capacity: that its pool has, and will have.
            now: the present instant.

        Raises:
            Invalid: names the step and what is wrong with it.
        """
        if not self.steps:
            raise Invalid("steps: a contract has at least one")
        for number, step in enumerate(self.steps, start=1):
            if step.starts_at.microsecond:
                raise Invalid(f"step {number}: it starts at a whole second")
            if not step.gpus >= 1:
                raise Invalid(f"step {number}: gpus must be at least 1, not {step.gpus}")
            if step.gpus > capacity.at(step.starts_at):
                more = capacity.more_by(step.starts_at)
                raise Invalid(
                    f"step {number}: {step.gpus} GPUs are more than pool {self.pool} has:"
                    f" {capacity.gpus}, and {more} are declared to come by then"
                )
            if step.rate.nanos <= 0:
                raise Invalid(f"step {number}: a price is more than zero")
        for number, (one, two) in enumerate(zip(self.steps, self.steps[1:], strict=False), start=1):
            if two.starts_at <= one.starts_at:
                raise Invalid(
                    f"steps {number} and {number + 1} overlap: the second starts at"
                    f" {_text(two.starts_at)}, not after {_text(one.starts_at)}"
                )
        if self.starts_at < now - _SECOND:
            raise Invalid(f"the contract starts at {_text(self.starts_at)}, which is in the past")
        if self.ends_at.microsecond or self.ends_at <= self.steps[-1].starts_at:
            raise Invalid(
                f"ends_at: it ends at {_text(self.ends_at)}, and its last step starts at"
                f" {_text(self.steps[-1].starts_at)}"
            )
        for place, step in enumerate(self.steps):
            if (self.end_of(place) - step.starts_at) % _DAY:
                raise Invalid(
                    f"step {place + 1}: it lasts from {_text(step.starts_at)} until"
                    f" {_text(self.end_of(place))}, which is not a whole number of days"
                )
        if self.ends_at - self.starts_at > LONGEST:
            raise Invalid("a contract is at most twenty years long")
        if not 0 <= self.shortfall_percent <= 100:
            raise Invalid("shortfall_percent must lie in 0…100")
        if not 0 <= self.late_percent <= 100:
            raise Invalid("late_percent must lie in 0…100")
        if not 0 <= self.missing_percent <= 100:
            raise Invalid("missing_percent must lie in 0…100")
        days = (self.notice_days, self.recall_days or 0, self.renewal_days, self.late_days or 0)
        if min(days) < 0:
            raise Invalid(
                "notice_days, recall_days, renewal_days and late_days must not be negative"
            )

    def end_by(self, who: str, now: datetime) -> datetime:
        """Return when it ends if the tenant or the operator says so now: never later than else.

        A tenant whose capacity is too late ends it at once.

        Raises:
            Refused: it is over, was ended before, or the operator has no right to.
        """
        if self.ended_by is not None or now >= self.ends_at:
            raise Refused(f"contract {self.id} ends at {_text(self.ends_at)} already")
        days = self.notice_days if who == "tenant" else self.recall_days
        if days is None:
            raise Refused(f"contract {self.id} gives the operator no right to recall it")
        if who == "tenant" and self.is_too_late(now):
            days = 0
        whole = now.replace(microsecond=0) + (_SECOND if now.microsecond else timedelta(0))
        return min(max(whole + days * _DAY, self.starts_at + _SECOND), self.ends_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What fell due at an instant."""

    due_at: datetime
    what: str  # 'capacity', 'late', 'broken' or 'minimum'
    gpus: int
    seconds: int
    amount: Money  # below nothing where it is given back
    place: int | None = None  # of the step
    begins_at: datetime | None = None  # of capacity, and of what is late or broken
    ends_at: datetime | None = None
    broken: Break | None = None

    @property
    def is_given_back(self) -> bool:
        return self.what in {"late", "broken"}


def bill(contract: Contract, start: datetime, end: datetime) -> list[Line]:
    """Return what falls due in (start, end], the earliest first.

    Take or pay: a day of a step is owed whether anything was used of it. Of GPUs that were not there
    yet, or were taken back again, so many per cent are not owed. Of what is missing to the minimum so
    many per cent are due at the end, unless the operator ended it, or was too late; what was late
    or taken back lowers the minimum by as much.
    """
    return [line for line in _due(contract) if start < line.due_at <= end]


def total(lines: Sequence[Line]) -> Money:
    return Money(sum(line.amount.nanos for line in lines))


def given_back(contract: Contract, starts_at: datetime, due_at: datetime) -> list[Line]:
    """Return what is not paid of the day that ends then, of the step that started at `starts_at`."""
    return [
        line
        for line in _due(contract)
        if line.is_given_back
        and line.place is not None
        and contract.steps[line.place].starts_at == starts_at
        and line.due_at == due_at
    ]


# GPUs that were not there, from when until when, and whose taking back it was, if it was that.
_Missing = tuple[int, datetime, datetime, Break | None]


def _due(contract: Contract) -> list[Line]:
    lines = []
    capacity = 0
    for place, step in enumerate(contract.steps):
        end = contract.end_of(place)
        missing: list[_Missing] = [
            (late.gpus, late.start, late.end, None) for late in contract.late(place)
        ]
        missing += [(it.gpus, it.at, end, it) for it in contract.breaks if it.place == place]
        start = step.starts_at
        while start < end:
            until = min(start + _DAY, end)
            seconds = (until - start) // _SECOND
            amount = step.rate.charge(step.gpus * seconds)
            capacity += amount.nanos
            lines.append(
                Line(
                    due_at=until, what="capacity", gpus=step.gpus, seconds=seconds, amount=amount,
                    place=place, begins_at=start, ends_at=until,
                )
            )  # fmt: skip
            lines += _lines_given_back(contract, place, missing, start, until)
            start = until
    owed = Rate(
        nanos=max(contract.minimum.nanos - capacity, 0) * contract.missing_percent, per=100
    ).charge(1)
    if owed.nanos and contract.ended_by not in {"operator", "late"}:
        lines.append(Line(due_at=contract.ends_at, what="minimum", gpus=0, seconds=0, amount=owed))
    return lines


def _lines_given_back(
    contract: Contract,
    place: int,
    missing: Sequence[_Missing],
    start: datetime,
    end: datetime,
) -> list[Line]:
    """Return what is not paid of one day of a step, since GPUs of it were not there."""
    lines = []
    for gpus, since, until, broken in missing:
        begins, ends = max(since, start), min(until, end)
        if begins >= ends:
            continue
        percent = contract.late_percent if broken is None else contract.shortfall_percent
        amount = broken_credit(
            contract.steps[place].rate, gpus=gpus, percent=percent, broken_at=begins, until=ends
        )
        if amount.nanos:
            lines.append(
                Line(
                    due_at=end, what="late" if broken is None else "broken", gpus=gpus,
                    seconds=(ends - begins) // _SECOND, amount=-amount, place=place,
                    begins_at=begins, ends_at=ends, broken=broken,
                )
            )  # fmt: skip
    return lines


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
