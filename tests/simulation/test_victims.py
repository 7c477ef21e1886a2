"""The choice on columns is that of `leases.reclaim`, for leases of one tenant and one tier."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sublet.leases.lease import Lease, LeaseId, State
from sublet.leases.reclaim import choose as choose_leases
from sublet.market.price import Tier
from sublet.simulation.rules import RULES
from sublet.simulation.scenario import INTERRUPTIBLE, ON_DEMAND
from sublet.simulation.table import Leases
from sublet.simulation.victims import choose

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = int(NOON.timestamp())
ONE = st.tuples(st.booleans(), st.integers(1, 16), st.integers(0, 5))


@given(st.booleans(), st.lists(ONE, min_size=1, max_size=12), st.integers(1, 100))
def test_the_same_leases_of_a_tier_go_as_by_the_rule_for_leases(
    every: bool, drawn: list[tuple[bool, int, int]], gpus: int
) -> None:
    made = [(every, size, age) for _, size, age in drawn]
    table = Leases()
    rows = table.add(
        {
            "request": list(range(len(made))),
            "tier": [ON_DEMAND if firm else INTERRUPTIBLE for firm, _, _ in made],
            "gpus": [size for _, size, _ in made],
            "running_at": [NOW - 600 * age for _, _, age in made],
        }
    )
    chosen = choose(table, rows, gpus=gpus, now=NOW, rules=RULES["sublet"])
    leases = [
        Lease(
            id=LeaseId(UUID(int=number)),
            tenant_id=UUID(int=1),
            pool="h200",
            gpus=size,
            tier=Tier.ON_DEMAND if firm else Tier.INTERRUPTIBLE,
            notice=timedelta(seconds=60),
            price_id=1,
            max_duration=timedelta(days=1),
            requested_at=NOON - timedelta(days=1),
            state=State.RUNNING,
            since=NOON,
            version=1,
            running_at=NOON - timedelta(seconds=600 * age),
        )
        for number, (firm, size, age) in enumerate(made)
    ]
    expected = choose_leases(leases, gpus=gpus, now=NOON)
    assert sorted(table.request[chosen].tolist()) == sorted(one.id.int for one in expected)


@given(st.lists(ONE, min_size=1, max_size=12), st.integers(1, 100))
def test_no_firm_lease_goes_while_an_interruptible_one_stays(
    made: list[tuple[bool, int, int]], gpus: int
) -> None:
    table = Leases()
    rows = table.add(
        {
            "request": list(range(len(made))),
            "tier": [ON_DEMAND if firm else INTERRUPTIBLE for firm, _, _ in made],
            "gpus": [1] * len(made),
            "running_at": [NOW - age for _, _, age in made],
        }
    )
    chosen = choose(table, rows, gpus=gpus, now=NOW, rules=RULES["sublet"])
    stays = np.setdiff1d(rows, chosen)
    assert not (table.tier[chosen] > 0).any() or (table.tier[stays] > 0).all()


@given(
    st.lists(ONE, min_size=1, max_size=12),
    st.integers(1, 100),
    st.sampled_from(sorted(RULES)),
)
def test_enough_goes_or_everything(
    made: list[tuple[bool, int, int]], gpus: int, rules: str
) -> None:
    table = Leases()
    rows = table.add(
        {
            "request": list(range(len(made))),
            "tier": [int(firm) for firm, _, _ in made],
            "gpus": [size for _, size, _ in made],
            "running_at": [NOW - age for _, _, age in made],
        }
    )
    chosen = choose(table, rows, gpus=gpus, now=NOW, rules=RULES[rules])
    assert len(np.unique(chosen)) == len(chosen)
    freed = int(table.gpus[chosen].sum())
    assert freed >= gpus or len(chosen) == len(rows)
    if RULES[rules].spares and freed >= gpus:
        assert freed - int(table.gpus[chosen].min()) < gpus, "none goes that is not needed"
