"""The choice on columns is that of `leases.reclaim`."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sublet.core.money import Rate
from sublet.engine.port import Node
from sublet.fleet.topology import Topology
from sublet.leases.lease import Lease, LeaseId, State
from sublet.leases.reclaim import Losses as ProductLosses
from sublet.leases.reclaim import choose as choose_leases
from sublet.market.price import Tier
from sublet.simulation.rules import RULES
from sublet.simulation.scenario import CONTRACT, INTERRUPTIBLE, ON_DEMAND, RESERVED
from sublet.simulation.table import Leases
from sublet.simulation.victims import Losses, Turns, choose

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = int(NOON.timestamp())
ONE = st.tuples(st.booleans(), st.integers(1, 16), st.integers(0, 5))
RATES = (7_200, 3_600_000, 36_000_000)  # nanos a GPU-hour: so that no credit is rounded
# Tier, GPUs, age in ten minutes, seconds left of its promise, tenant, price, checkpoint each.
MANY = st.tuples(
    st.sampled_from([INTERRUPTIBLE, ON_DEMAND, RESERVED, CONTRACT]),
    st.integers(1, 16),
    st.integers(0, 40),
    st.sampled_from([-60, 600, 7_200]),
    st.integers(1, 4),
    st.integers(0, 2),
    st.sampled_from([0, 900, 3_600]),
)
_TIERS = (Tier.INTERRUPTIBLE, Tier.ON_DEMAND, Tier.RESERVED, Tier.CONTRACT)


@settings(max_examples=300)
@given(
    st.lists(MANY, min_size=1, max_size=14),
    st.integers(1, 120),
    st.dictionaries(st.integers(1, 4), st.integers(1, 3)),
    st.sampled_from([1, 8]),
)
def test_the_same_leases_go_as_by_the_rule_for_leases(
    made: list[tuple[int, ...]], gpus: int, lately: dict[int, int], node_gpus: int
) -> None:
    """Tiers, promises, credit, turns of tenants, checkpoints, nodes: all that decides."""
    table = Leases()
    # What is reserved or contracted is so until its end.
    left = [60 if tier >= RESERVED and soon < 0 else soon for tier, _, _, soon, *_ in made]
    rows = table.add(
        {
            "request": list(range(len(made))),
            "tier": [one[0] for one in made],
            "gpus": [one[1] for one in made],
            "running_at": [NOW - 600 * one[2] for one in made],
            "promised_until": [NOW + seconds for seconds in left],
            "tenant": [one[4] for one in made],
            "rate": [RATES[one[5]] for one in made],
            "checkpoint": [one[6] for one in made],
        }
    )
    chosen = choose(
        table, rows, gpus=gpus, now=NOW, rules=RULES["sublet"],
        losses=Losses(lately=lately, node_gpus=node_gpus),
    )  # fmt: skip
    leases = []
    for number, (tier, size, age, _, tenant, price, every) in enumerate(made):
        began = NOON - timedelta(seconds=600 * age)
        until = NOON + timedelta(seconds=left[number])
        saved = timedelta(seconds=600 * age - 600 * age % every) if every else timedelta(0)
        firm = until - began if tier == ON_DEMAND else timedelta(0)
        leases.append(
            Lease(
                id=LeaseId(UUID(int=number)), tenant_id=UUID(int=tenant), pool="h200", gpus=size,
                tier=_TIERS[tier], notice=timedelta(seconds=60), price_id=price,
                max_duration=timedelta(days=1), requested_at=NOON - timedelta(days=1),
                state=State.RUNNING, since=NOON, version=1, running_at=began,
                firm=max(firm, timedelta(0)), until=until if tier >= RESERVED else None,
                checkpoint_at=began + saved,
            )
        )  # fmt: skip
    node = Node(name="a", gpu_model="h200", gpus=node_gpus, memory_bytes=1)
    known = ProductLosses(
        rates={price: Rate(nanos=nanos, per=3_600) for price, nanos in enumerate(RATES)},
        lately={UUID(int=tenant): times for tenant, times in lately.items()},
        topology=Topology.of([node]),
    )
    expected = choose_leases(leases, gpus=gpus, now=NOON, losses=known)
    assert table.request[chosen].tolist() == [one.id.int for one in expected]


def test_turns_are_those_of_the_last_day() -> None:
    turns = Turns()
    turns.note(np.array([3, 3, 4]), np.array([7, 7, 7]), NOW)
    turns.note(np.array([3]), np.array([8]), NOW + 3_600)
    assert dict(turns.lately(3, NOW + 86_400)) == {7: 2, 8: 1}
    assert +Counter(turns.lately(3, NOW + 86_401)) == {8: 1}
    assert turns.lately(5, NOW)[7] == 0


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
            "promised_until": [NOW + 60] * len(made),
        }
    )
    chosen = choose(table, rows, gpus=gpus, now=NOW, rules=RULES["sublet"], losses=Losses())
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
    chosen = choose(table, rows, gpus=gpus, now=NOW, rules=RULES[rules], losses=Losses())
    assert len(np.unique(chosen)) == len(chosen)
    freed = int(table.gpus[chosen].sum())
    assert freed >= gpus or len(chosen) == len(rows)
    if RULES[rules].spares and freed >= gpus:
        assert freed - int(table.gpus[chosen].min()) < gpus, "none goes that is not needed"
