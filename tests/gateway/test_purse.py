"""A purse never gives what is not held, whatever happens in which order."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.gateway.grant import Grant, Need
from sublet.gateway.purse import IDLE_SECONDS, RENEW_SECONDS, USABLE_SECONDS, Held, Purse
from sublet.gateway.tariff import Tariff
from sublet.market.price import Price

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ONE = Price(id=1, sku="s", rate=Rate(nanos=1, per=1), happened_at=NOON)
TARIFF = Tariff(input=ONE, cache_read=ONE, cache_write=ONE, output=ONE, reasoning=ONE)


def need(tokens: int) -> Need:
    return Need(prompt_tokens=0, counted=True, max_tokens=tokens, context_left=10**6, tariff=TARIFF)


def purse(nanos: int) -> Purse[None]:
    made: Purse[None] = Purse(UUID(int=1))
    made.rehold(Held(id=new_id(), nanos=nanos), at=0)
    return made


class Life(RuleBasedStateMachine):
    """The ledger's side is a number; the purse must never have given out more."""

    @initialize(nanos=st.integers(0, 100))
    def begin(self, nanos: int) -> None:
        self.purse = purse(nanos)
        self.ledger = nanos  # what its hold is worth
        self.running: list[Grant] = []
        self.spent = 0
        self.now = 0.0

    @rule(tokens=st.integers(1, 60))
    def ask(self, tokens: int) -> None:
        free = self.purse.free
        grant = self.purse.take(need(tokens), now=self.now)
        assert (grant is not None) == (tokens <= free and not self.purse.closed)
        if grant is not None:
            self.running.append(grant)

    @precondition(lambda self: self.running)
    @rule(share=st.floats(0, 1))
    def end(self, share: float) -> None:
        grant = self.running.pop()
        used = int(grant.amount.nanos * share)
        self.purse.end(grant, used=used)
        self.spent += used

    @precondition(lambda self: not self.purse.busy)
    @rule(share=st.floats(0, 1), done=st.booleans(), seconds=st.floats(0, 3))
    def hand_over(self, share: float, done: bool, seconds: float) -> None:
        """As the cashier does it, with requests that come in between."""
        self.now += seconds
        paid = int(self.spent * share)
        self.purse.busy = True
        stays = paid > 0 and self.purse.stays(paid, now=self.now)
        self.purse.leaving = 0 if stays else self.purse.surplus(now=self.now)
        keep = self.purse.held - self.purse.leaving - (0 if stays else paid)
        assert keep >= 0
        self.ask(3)
        if done:
            self.purse.spent -= paid
            self.spent -= paid
        if done and not stays:
            self.ledger = keep
            self.purse.rehold(Held(id=new_id(), nanos=keep) if keep else None, at=self.now)
        else:
            self.purse.rehold(self.purse.backing, at=self.purse.held_at)

    @precondition(lambda self: not self.purse.busy)
    @rule(asked=st.integers(1, 50))
    def refill(self, asked: int) -> None:
        self.purse.busy = self.purse.closed = True
        used = self.purse.held - self.purse.free
        self.ask(1)  # refused: it is closed
        self.ledger = used + asked + self.purse.expect(asked, now=self.now)
        self.purse.rehold(Held(id=new_id(), nanos=self.ledger), at=self.now)

    @invariant()
    def gives_no_more_than_is_held(self) -> None:
        if hasattr(self, "purse"):
            given = sum(grant.amount.nanos for grant in self.running)
            assert given + self.spent <= self.ledger == self.purse.held
            assert self.purse.committed == given
            assert self.purse.spent == self.spent
            assert self.purse.free == self.ledger - given - self.spent


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_an_old_hold_is_not_given_from() -> None:
    one = purse(10)
    assert one.take(need(1), now=USABLE_SECONDS) is not None
    assert one.take(need(1), now=USABLE_SECONDS + 1) is None


def test_who_comes_often_gets_more_ahead_and_who_rests_gives_it_back() -> None:
    one = purse(0)
    assert one.expect(10, now=0) == 0
    first, second = one.expect(10, now=0.1), one.expect(10, now=0.2)
    assert 0 < first < second
    one.rehold(Held(id=new_id(), nanos=500), at=0.2)
    one.take(need(1), now=0.2)
    assert one.surplus(now=0.3) == 499 - second
    assert one.surplus(now=0.3 + IDLE_SECONDS) == 499
    assert one.expect(10, now=0.2 + IDLE_SECONDS) == 0


def test_the_hold_of_who_comes_often_stays_until_it_is_old_or_far_too_large() -> None:
    one = purse(0)
    one.expect(10, now=0)
    keep = one.expect(10, now=1)
    one.rehold(Held(id=new_id(), nanos=keep + 10), at=1)
    grant = one.take(need(10), now=1)
    assert grant is not None
    one.end(grant, used=4)
    assert one.stays(4, now=2)
    assert not one.stays(4, now=1 + RENEW_SECONDS + 1)
    one.rehold(Held(id=new_id(), nanos=3 * keep), at=2)
    one.used_at = 2
    assert not one.stays(4, now=2)


def test_nothing_stays_of_who_comes_rarely() -> None:
    one = purse(10)
    grant = one.take(need(10), now=0)
    assert grant is not None
    one.end(grant, used=4)
    assert not one.stays(4, now=0.1)
