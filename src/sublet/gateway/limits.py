"""How often, how much and how much at once a key and its tenant may ask.

A request takes its tokens before it starts, as many as it may use at most, and gives back
what it did not use. Buckets refill by the minute, and belong to one gateway process: what others
let pass is taken out of them about once a second (`hear`), so on several gateways a rate holds on
average, and may be exceeded for about a second. Money is exact, see `budgets.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from sublet.gateway.failures import Failure, Kind
from sublet.tenants.limit import Limit, LimitBook, Limits
from sublet.tenants.limits import Use

_PERIOD_SECONDS = 60.0
_NONE = Limits()


@dataclass(slots=True)
class Bucket:
    size: int  # refilled in full every minute
    level: float
    at: float  # when `level` was right, on a clock that only goes forward

    def fill(self, now: float) -> None:
        gained = (now - self.at) * self.size / _PERIOD_SECONDS
        self.level = min(float(self.size), self.level + gained)
        self.at = now

    def seconds_until(self, amount: int) -> float:
        return max(0.0, (amount - self.level) * _PERIOD_SECONDS / self.size)

    def resize(self, size: int) -> None:
        """Let what was used stay used."""
        self.level += size - self.size
        self.size = size


class Standing(NamedTuple):
    """How a key stands with one of its limits."""

    name: str  # "requests" or "tokens"
    size: int  # a minute
    left: int
    full_seconds: float  # until all of it is back


@dataclass(slots=True, eq=False)
class Subject:
    """A key or a tenant, and what it has left."""

    whose: str  # "key" or "tenant", for people
    requests: Bucket | None
    tokens: Bucket | None
    streams: int | None
    budgets: Sequence[Limit]
    running: int = 0
    # What passed here, for the other gateways:
    asked: int = 0
    used: int = 0
    # … and what they told, by their name: the last, and how many run there.
    heard: dict[str, Use] = field(default_factory=dict)

    @property
    def elsewhere(self) -> int:
        return sum(use.running for use in self.heard.values())

    @property
    def idle(self) -> bool:
        return (
            not self.running
            and not self.elsewhere
            and all(
                bucket is None or bucket.level >= bucket.size
                for bucket in (self.requests, self.tokens)
            )
        )


class Limiter:
    def __init__(self, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        """Say what a key may that has no limits of its own."""
        self._requests = requests_per_minute
        self._tokens = tokens_per_minute
        self._book = LimitBook()
        self._subjects: dict[UUID, Subject] = {}
        self._told: set[UUID] = set()

    @property
    def book(self) -> LimitBook:
        return self._book

    def set_defaults(self, *, requests_per_minute: int, tokens_per_minute: int) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._renew()

    def put(self, book: LimitBook) -> None:
        """Go by these limits from now on."""
        if book is not self._book:
            self._book = book
            self._renew()

    def find(self, key: UUID, tenant: UUID) -> tuple[Subject, ...]:
        """Return who must have left what a request of this key takes."""
        subject = self._subjects.get(key) or self._new(key, "key")
        if tenant not in self._book.of:
            return (subject,)
        return (subject, self._subjects.get(tenant) or self._new(tenant, "tenant"))

    def enter(self, subjects: Sequence[Subject], *, now: float) -> None:
        """Count one request.

        Raises:
            Failure: there were too many in the last minute.
        """
        _take(subjects, "requests", 1, now)

    def reserve(self, subjects: Sequence[Subject], tokens: int, *, now: float) -> None:
        """Take what a request may use at most.

        Raises:
            Failure: that many are not left.
        """
        _take(subjects, "tokens", tokens, now)

    def give_back(self, subjects: Sequence[Subject], tokens: int, *, now: float) -> None:
        """Return what it did not use."""
        for subject in subjects:
            subject.used -= tokens
            if (bucket := subject.tokens) is not None:
                bucket.fill(now)
                bucket.level = min(float(bucket.size), bucket.level + tokens)

    def begin(self, subjects: Sequence[Subject]) -> None:
        """Count an answer that is on its way; `end` it.

        Raises:
            Failure: as many are as may be at the same time.
        """
        for subject in subjects:
            if subject.streams is not None:
                running = subject.running + subject.elsewhere
                if running >= subject.streams:
                    raise _crowded(subject, running)
        for subject in subjects:
            subject.running += 1

    def end(self, subjects: Sequence[Subject]) -> None:
        for subject in subjects:
            subject.running -= 1

    def standing(self, subjects: Sequence[Subject], *, now: float) -> list[Standing]:
        """Say of requests and tokens the limit of which least is left, and when it will be full."""
        found = []
        for name in ("requests", "tokens"):
            least: Bucket | None = None
            for subject in subjects:
                bucket: Bucket | None = getattr(subject, name)
                if bucket is not None:
                    bucket.fill(now)
                    if least is None or bucket.level < least.level:
                        least = bucket
            if least is not None:
                left = max(0, int(least.level))
                found.append(Standing(name, least.size, left, least.seconds_until(least.size)))
        return found

    def forget(self, *, now: float) -> None:
        """Drop what is full again: a key that rests costs no memory."""
        for id_, subject in list(self._subjects.items()):
            for bucket in (subject.requests, subject.tokens):
                if bucket is not None:
                    bucket.fill(now)
            if subject.idle and id_ not in self._told:
                del self._subjects[id_]

    # ── other gateways ───────────────────────────────────────────────────────────────────

    def tell(self, gateway: str) -> list[Use]:
        """Return what passed here of who is not at rest, and once more of who came to rest."""
        busy = {id_ for id_, subject in self._subjects.items() if not subject.idle}
        told = [
            Use(
                gateway=gateway, subject=id_, requests=subject.asked, tokens=subject.used,
                running=subject.running,
            )
            for id_ in busy | self._told
            if (subject := self._subjects.get(id_)) is not None
        ]  # fmt: skip
        self._told = busy
        return told

    def hear(self, uses: Iterable[Use]) -> None:
        """Take out what passed elsewhere since it was last told."""
        for subject in self._subjects.values():
            for name, use in list(subject.heard.items()):
                subject.heard[name] = Use(
                    gateway=name, subject=use.subject, requests=use.requests, tokens=use.tokens,
                    running=0,
                )  # fmt: skip
        for use in uses:
            heard_of = self._subjects.get(use.subject)
            if heard_of is None:
                if not (use.running or use.requests):
                    continue
                whose = "tenant" if use.subject in self._book.of else "key"
                heard_of = self._new(use.subject, whose)
            before = heard_of.heard.get(use.gateway)
            heard_of.heard[use.gateway] = use
            if before is None or before.requests > use.requests:
                continue  # from now on: what was before may be long ago
            if heard_of.requests is not None:
                heard_of.requests.level -= use.requests - before.requests
            if heard_of.tokens is not None:
                heard_of.tokens.level -= use.tokens - before.tokens

    # ── subjects ─────────────────────────────────────────────────────────────────────────

    def _new(self, id_: UUID, whose: str) -> Subject:
        subject = self._subjects[id_] = Subject(whose, None, None, None, ())
        self._set(subject, self._book.of.get(id_, _NONE))
        return subject

    def _renew(self) -> None:
        for id_, subject in self._subjects.items():
            self._set(subject, self._book.of.get(id_, _NONE))

    def _set(self, subject: Subject, limits: Limits) -> None:
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        if subject.whose == "key":
            requests = self._requests if requests is None else requests
            tokens = self._tokens if tokens is None else tokens
        subject.requests = _sized(subject.requests, requests)
        subject.tokens = _sized(subject.tokens, tokens)
        subject.streams = limits.streams
        subject.budgets = limits.budgets


def _sized(bucket: Bucket | None, size: int | None) -> Bucket | None:
    if size is None:
        return None
    if bucket is None:
        return Bucket(size, float(size), 0.0)
    if bucket.size != size:
        bucket.resize(size)
    return bucket


def _take(subjects: Sequence[Subject], what: str, amount: int, now: float) -> None:
    """Take it of all or of none."""
    for subject in subjects:
        bucket: Bucket | None = getattr(subject, what)
        if bucket is not None:
            bucket.fill(now)
            if bucket.level < amount:
                raise _refusal(subject.whose, what, bucket, amount)
    for subject in subjects:
        if what == "requests":
            subject.asked += amount
        else:
            subject.used += amount
        bucket = getattr(subject, what)
        if bucket is not None:
            bucket.level -= amount


def _refusal(whose: str, what: str, bucket: Bucket, needed: int) -> Failure:
    if needed > bucket.size:
        return Failure(
            Kind.OVER_LIMIT,
            f"this request may use {needed} {what}, and this {whose}'s limit is {bucket.size} a"
            " minute: set a lower max_tokens, or shorten the input",
        )
    wait = max(0.001, bucket.seconds_until(needed))
    left = max(0, int(bucket.level))
    return Failure(
        Kind.RATE_LIMITED,
        f"this {whose}'s limit is {bucket.size} {what} a minute: {left} are left and"
        f" this request needs {needed}; retry in {span(wait)}",
        after_seconds=wait,
    )


def _crowded(subject: Subject, running: int) -> Failure:
    if subject.streams == 0:
        return Failure(Kind.OVER_LIMIT, f"this {subject.whose} may have no answers: its limit is 0")
    return Failure(
        Kind.RATE_LIMITED,
        f"this {subject.whose}'s limit is {subject.streams} answers at the same time, and"
        f" {running} are on their way: 0 are left; retry when one has ended",
        after_seconds=1.0,
    )


def span(seconds: float) -> str:
    """Write a span as OpenAI does: 120ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.3g}s"


def budgets_of(subjects: Sequence[Subject]) -> list[Limit]:
    """Return all budgets that a request must be within."""
    return [budget for subject in subjects for budget in subject.budgets]


def whose_limit(limit: Limit) -> str:
    return "tenant" if limit.api_key_id is None else "key"
