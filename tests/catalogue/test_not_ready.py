"""A model that is not up says when it will be, in every dialect; and nobody sees another's."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from sublet.gateway import anthropic, bedrock, converse, openai, responses
from sublet.gateway.demand import Demand
from sublet.gateway.dialect import Dialect
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.table import Offer, Table
from sublet.models.deployment import Deployment, Replica, ReplicaState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DIALECTS: Mapping[str, tuple[Dialect, int, str]] = {
    "chat": (openai.CHAT, 503, "model_not_ready"),
    "completions": (openai.COMPLETION, 503, "model_not_ready"),
    "responses": (responses.RESPONSES, 503, "model_not_ready"),
    "messages": (anthropic.MESSAGES, 529, "not ready"),
    "bedrock": (bedrock.RUNTIME, 429, "model_not_ready"),
    "converse": (converse.dialect("m", stream=True), 429, "model_not_ready"),
}


def offer(
    *, warm: float | None, waited: float | None = None, name: str = "m", owner: UUID | None = None
) -> Offer:
    """Return one whose replicas took `warm` seconds; one has been starting for `waited`."""
    last = None
    if waited is not None:
        last = Replica(
            id=UUID(int=1), deployment=name, url="http://127.0.0.1:1", secret="s",
            state=ReplicaState.STARTING, detail=None, since=NOON,
            started_at=NOON - timedelta(seconds=waited),
        )  # fmt: skip
    return Offer(
        deployment=Deployment(
            name=name, recipe="r", context_tokens=10, wanted=True, owner_id=owner
        ),
        tariff=None, ready=(), last=last, warm_seconds=warm, read_at=NOON,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("warm", "waited", "seconds"),
    [
        (40.0, None, 40),  # nobody has started yet
        (40.0, 12.0, 28),
        (40.0, 39.9, 1),
        (40.0, 70.0, 30),  # late: it may take as long again as it is late
        (None, 12.0, 2),  # not measured: come again soon
    ],
)
def test_the_expected_time_is_what_the_last_ones_took(
    warm: float | None, waited: float | None, seconds: int
) -> None:
    failure = offer(warm=warm, waited=waited).refusal()
    assert failure.kind is Kind.NOT_READY
    headers = dict(failure.headers)
    assert headers[b"retry-after"] == b"%d" % seconds
    assert headers[b"x-should-retry"] == b"true"
    assert (f"expected in {seconds} seconds" in failure.message) == (warm is not None)


@pytest.mark.parametrize("name", DIALECTS)
def test_it_is_told_in_every_dialect(name: str) -> None:
    dialect, status, word = DIALECTS[name]
    failure = offer(warm=40.0).refusal()
    told, body, own = dialect.refuse(failure, "req_1")
    assert told == status
    assert word.encode() in body and b"expected in 40 seconds" in body
    assert dict(failure.headers + own)[b"retry-after"] == b"40"
    if status == 429:
        assert dict(own)[b"x-amzn-errortype"] == b"ModelNotReadyException"


def test_a_tenants_model_is_there_for_its_tenant_alone() -> None:
    owner, other = UUID(int=7), UUID(int=8)
    ours = offer(warm=None, name="open")
    theirs = offer(warm=None, name="acme/own", owner=owner)
    table = Table(
        offers={"open": ours},
        private={owner: Table(offers={"open": ours, "acme/own": theirs})},
    )
    assert set(table.seen_by(owner).offers) == {"open", "acme/own"}
    for who in (other, None):
        assert set(table.seen_by(who).offers) == {"open"}
        with pytest.raises(Failure, match="does not exist here"):
            table.seen_by(who).find("acme/own")
    assert table.sells("acme/own") and not table.sells("acme/none")


def test_gateways_tell_what_changed_and_repeat_what_goes_on() -> None:
    demand = Demand()
    demand.asked("m", at=NOON)
    with demand.runs("m", 300), demand.runs("m", 200):
        told = demand.news(now=0.0)["m"]
        assert (told.requests, told.outstanding_tokens, told.asked_at) == (2, 500, NOON)
        assert demand.news(now=0.5) == {}
        assert demand.news(now=4.0)["m"].requests == 2
        for number in range(10):
            demand.first("m", 4.0, 4.0 + number / 10)
    told = demand.news(now=5.0)["m"]
    assert (told.requests, told.outstanding_tokens, told.first_token_ms) == (0, 0, 900)
    assert demand.news(now=60.0) == {}
    demand.asked("m", at=NOON)
    assert demand.news(now=61.0)["m"].first_token_ms is None  # of long ago
