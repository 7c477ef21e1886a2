"""What may be used of a supplier, or lost, in a span of time: never more, whoever asks.

Each gateway process holds a **share** of each limit, which the database counts as used until it is
given back; so a purchase asks nobody as long as its process' share is large enough:

    free + in flight + used and not told = share        in one process
    used in the span + all shares <= limit               in the database

A request's most is set aside while it runs. What it used is told when it ended, and counts from
then on for one whole span and a margin: so the limit holds whether the supplier counts at a
request's beginning or end, in spans that slide, or in spans that begin on the minute. Of a supplier
that counts what was asked for, nothing returns when less was used (`asked`). A day is the
supplier's calendar day. A process that dies takes its share with it: what it held counts as used
just then.

Pure: what the database does is `settle`, a function of what stands there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

from sublet.core.errors import Invalid

PACIFIC: Final = "America/Los_Angeles"
# For what is under way to the supplier, and for its clock.
MARGIN: Final = timedelta(seconds=3)
# No request runs for as long: a holder that said nothing meanwhile is dead, and its requests too.
DEAD: Final = timedelta(minutes=15)
# Beyond what waits now a process takes at most this part of a limit.
_AHEAD: Final = 16


class Measure(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"  # input and output
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    SPEND = "spend"  # nanos
    LOSS = "loss"  # nanos that a purchase costs more than its buyer pays


class Span(StrEnum):
    MINUTE = "minute"
    TEN_MINUTES = "ten_minutes"
    DAY = "day"


_LENGTHS: Final[Mapping[Span, timedelta]] = {
    Span.MINUTE: timedelta(minutes=1),
    Span.TEN_MINUTES: timedelta(minutes=10),
    Span.DAY: timedelta(days=1),
}
_SLOTS: Final[Mapping[Span, int]] = {Span.MINUTE: 1, Span.TEN_MINUTES: 10, Span.DAY: 900}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    id: int
    scope: str  # 'project:<name>', 'loss:<deployment>'
    measure: Measure
    span: Span
    amount: int
    model: str | None = None  # None: all of them together
    tier: str | None = None  # None: all of them together
    zone: str = "UTC"  # where a day ends
    asked: bool = False  # counts what a request asked for, however little it used

    @property
    def label(self) -> str:
        """For people, and for metrics."""
        of = "".join(f" of {part}" for part in (self.model, self.tier) if part is not None)
        return f"{self.measure.value} a {self.span.value.replace('_', ' ')}{of}"

    def counts_from(self, now: datetime) -> datetime:
        """Return since when what was used counts."""
        if self.span is not Span.DAY:
            return now - _LENGTHS[self.span] - MARGIN
        # In the first moments of a day the supplier may still be in the one before.
        zone = ZoneInfo(self.zone)
        local = (now - MARGIN).astimezone(zone)
        midnight = datetime(local.year, local.month, local.day, tzinfo=zone)
        return midnight.astimezone(UTC) - MARGIN

    def returns_at(self, now: datetime) -> datetime:
        """Return when something of it surely counts no more."""
        if self.span is not Span.DAY:
            return now + _LENGTHS[self.span] + MARGIN
        zone = ZoneInfo(self.zone)
        local = now.astimezone(zone) + timedelta(days=1)  # wall time: also when the clock changes
        midnight = datetime(local.year, local.month, local.day, tzinfo=zone)
        return midnight.astimezone(UTC) + MARGIN

    def slot(self, now: datetime) -> datetime:
        """Return the end of the slot that `now` is in."""
        seconds = _SLOTS[self.span]
        return datetime.fromtimestamp((int(now.timestamp()) // seconds + 1) * seconds, tz=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A process' share, as the database has it."""

    instance: str
    held: int
    told: int  # of all that this run used
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a supplier said of a limit in an answer's headers."""

    amount: int | None  # of the limit
    left: int
    until: datetime  # when it is whole again


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One limit as the database has it."""

    limit: Limit
    used: Mapping[datetime, int] = field(default_factory=dict)  # by the end of its slot
    shares: Mapping[str, Held] = field(default_factory=dict)  # by holder
    told_amount: int | None = None
    told_until: datetime | None = None
    others: int = 0  # used by others than us, as far as the supplier's words show
    others_until: datetime | None = None

    def amount(self, now: datetime) -> int:
        """Return how much it is now: never more than it was set to."""
        told = self.told_until is not None and self.told_until > now
        amount = self.limit.amount
        if told and self.told_amount is not None:
            amount = min(amount, self.told_amount)
        return amount

    def counted(self, now: datetime) -> int:
        """Return how much of it is used, or may be."""
        since = self.limit.counts_from(now)
        used = sum(amount for end, amount in self.used.items() if end > since)
        if self.others_until is not None and self.others_until > now:
            used += self.others
        return used + sum(share.held for share in self.shares.values())

    def left(self, now: datetime) -> int:
        return max(0, self.amount(now) - self.counted(now))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one process says of a limit, and what it would like to have."""

    holder: str
    instance: str
    used: int  # by all that ended in this run
    flying: int  # of what runs
    wanted: int  # beside that
    told: Told | None = None


def settle(standing: Standing, asked: Asked, now: datetime) -> Standing:
    """Return the limit once a process was heard and given its share. Repeating it changes nothing.

    What runs is never taken back, and what is given never makes the limit exceeded.
    """
    limit = standing.limit
    used = {end: n for end, n in standing.used.items() if end > limit.counts_from(now)}
    end = limit.slot(now)

    def add(amount: int) -> None:
        if amount:
            used[end] = used.get(end, 0) + amount

    shares = dict(standing.shares)
    for holder, share in standing.shares.items():
        predecessor = holder == asked.holder and share.instance != asked.instance
        if predecessor or now - share.seen_at > DEAD:
            add(share.held)  # whatever of it was in flight may just have ended
            del shares[holder]
    before = shares.pop(asked.holder, None)
    told = 0 if before is None else before.told
    assert asked.used >= told, (asked, before)
    add(asked.used - told)
    heard = _hear(replace(standing, used=used, shares=shares), asked, now)
    room = heard.amount(now) - heard.counted(now) - asked.flying
    held = asked.flying + max(0, min(asked.wanted, room))
    if held or asked.used:
        shares[asked.holder] = Held(
            instance=asked.instance, held=held, told=asked.used, seen_at=now
        )
    return replace(heard, shares=shares)


def _hear(standing: Standing, asked: Asked, now: datetime) -> Standing:
    """Take the supplier's word where it leaves less than we know of."""
    told = asked.told
    if told is None or told.until <= now:
        return standing
    limit = standing.limit
    amount = limit.amount if told.amount is None else told.amount
    ours = replace(standing, others=0, others_until=None).counted(now) + asked.flying
    return replace(
        standing,
        told_amount=told.amount,
        told_until=None if told.amount is None else now + timedelta(hours=1),
        others=max(0, amount - told.left - ours),
        others_until=min(told.until, limit.returns_at(now)),
    )


@dataclass(slots=True, kw_only=True)
class Share:
    """What one process may use of a limit, in its memory. Times are seconds that only go forward."""

    limit: Limit
    held: int = 0
    flying: int = 0
    used: int = 0  # by all that ended in this run
    told: int = 0  # of it: what the database knows
    wanted: int = 0  # by who waits now
    heard: Told | None = None
    settling: bool = False  # the database is being asked: until it answers nobody knows the share
    lately: float = 0.0  # how much was used in a second, lately
    _noted_at: float = 0.0

    @property
    def free(self) -> int:
        return 0 if self.settling else self.held - self.flying - (self.used - self.told)

    @property
    def news(self) -> bool:
        """Say whether the database should be told."""
        return self.used > self.told or self.heard is not None or self.free > self._ahead()

    def take(self, amount: int, *, now: float) -> bool:
        """Set aside what a request may use at most; False: ask for more first."""
        passed = max(1e-3, now - self._noted_at)
        self._noted_at = now
        fade = min(1.0, passed / 2)
        self.lately = self.lately * (1 - fade) + amount / passed * fade
        if amount > self.free:
            return False
        self.flying += amount
        return True

    def undo(self, amount: int) -> None:
        """Give back what was taken for nothing."""
        self.flying -= amount

    def end(self, amount: int, used: int) -> None:
        """Give back what a request did not use."""
        self.flying -= amount
        self.used += amount if self.limit.asked else used

    def ask(self, holder: str, instance: str) -> Asked:
        """Begin to settle: nothing is taken until `answered`."""
        assert not self.settling
        self.settling = True
        heard, self.heard = self.heard, None
        return Asked(
            holder=holder,
            instance=instance,
            used=self.used,
            flying=self.flying,
            wanted=self.wanted + self._ahead(),
            told=heard,
        )

    def again(self, holder: str, instance: str) -> Asked:
        """Ask once more, as nobody heard the answer: whatever it was, this one stands."""
        assert self.settling
        self.settling = False
        return self.ask(holder, instance)

    def answered(self, asked: Asked, held: int) -> None:
        self.settling = False
        self.held, self.told = held, asked.used

    def _ahead(self) -> int:
        """Return how much to have beside, for requests to come: what two seconds need."""
        return min(self.limit.amount // _AHEAD, int(self.lately * 2))


def project_scope(project: str) -> str:
    return f"project:{project}"


def loss_scope(deployment: str) -> str:
    return f"loss:{deployment}"


def checked_zone(zone: str) -> str:
    """Raises Invalid: there is no such time zone."""
    try:
        ZoneInfo(zone)
    except (ValueError, OSError, KeyError):
        raise Invalid(f"zone: there is no time zone {zone[:60]!r}; such as {PACIFIC}") from None
    return zone
