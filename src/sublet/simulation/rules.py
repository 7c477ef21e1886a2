"""The rules by which a fleet is shared and priced: Sublet's, and those of others.

A set of rules is a few choices that the simulator reads. What others do is taken from their
public documents as of 2026, reduced to what decides about GPUs; see docs/operate/simulate.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

PRICING: Final = ("bid", "fixed", "cost_plus", "greedy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    plans: bool = True  # sells firm by the planner's confidence; else whatever is idle
    tiers: bool = True  # tells tiers apart when it takes back
    victims: str = "loss"  # least loss | oldest request | youngest start first
    spares: bool = True  # gives back what the choice turned out not to need
    reclaims: str = "all"  # all that internal jobs lack | up to their fair share | none
    deserved: float = 1.0  # internal jobs' share of a pool, where reclaim stops at a fair share
    requeues: str = "resumable"  # which evicted leases come back: resumable | all | none
    requeue_seconds: int = 0  # for which an evicted lease waits at least
    credits: bool = True  # for broken promises
    auction: bool = False  # everybody bids again at every step, and pays the highest losing bid
    pricing: str | None = None  # its own, whatever the scenario says


RULES: Final[Mapping[str, Rules]] = MappingProxyType(
    {
        "sublet": Rules(),
        # preempt/partition_prio with REQUEUE: a job of the higher partition takes what it needs,
        # the oldest first among equals; requeued jobs wait two minutes.
        "slurm": Rules(
            plans=False, tiers=False, victims="oldest", requeues="all", requeue_seconds=120,
            credits=False, pricing="greedy",
        ),
        # Classic preemption with reclaimWithinCohort Any: the internal queue owns the nominal
        # quota, leases borrow; most recently admitted first, and what is not needed is kept.
        "kueue": Rules(
            plans=False, tiers=False, victims="youngest", requeues="all", credits=False,
            pricing="greedy",
        ),
        # Deserved quota and over-quota with equal weights: internal jobs take back up to their
        # fair share, which is what they deserve and half of the rest.
        "kai": Rules(
            plans=False, tiers=False, victims="youngest", spares=False, reclaims="share",
            deserved=0.8, requeues="all", credits=False, pricing="greedy",
        ),
        # A uniform second price, found anew at every step; whoever is outbid leaves with notice.
        "auction": Rules(
            plans=False, tiers=False, victims="youngest", requeues="none", credits=False,
            auction=True, pricing="greedy",
        ),
        # Blocks that are filled whole or not at all, and are the buyer's until they end.
        "blocks": Rules(
            plans=False, reclaims="none", requeues="none", credits=False, pricing="greedy",
        ),
    }
)  # fmt: skip
