"""Spot by auction: at every step all who run and all who ask bid for what is idle.

One price for everybody in a pool: the highest bid that did not win, and the floor at least.
Leases are filled whole or not at all, the highest bid first; whoever is outbid leaves with
notice. A bid that loses stands for four hours, and sets the price meanwhile. What was contracted
is outside of it.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import numpy as np

from sublet.simulation.admission import Again
from sublet.simulation.scenario import CONTRACT, RESERVED, STEP
from sublet.simulation.table import RUNNING

if TYPE_CHECKING:
    from sublet.simulation.run import Simulation

_STANDS_SECONDS: Final = 4 * 3_600  # for which a bid that lost stands


def hold_auction(of: "Simulation", step: int, *, now: int) -> None:
    leases, requests, admission = of.leases, of.requests, of.admission
    rows = leases.rows(RUNNING)
    rows = rows[leases.tier[rows] != CONTRACT]
    running: dict[int, list[int]] = defaultdict(list)
    for row in rows.tolist():
        running[int(leases.pool[row])].append(row)
    low, high = int(requests.first[step]), int(requests.first[step + 1])
    asking: dict[int, list[int]] = defaultdict(list)
    standing, of.standing = of.standing, []
    for number in [*standing, *range(low, high)]:
        if now > int(requests.at[number]) + _STANDS_SECONDS:
            of.tally.refused["price"] += 1
            continue
        if requests.tier[number] == RESERVED:  # there is nothing of the kind
            of.tally.refused["price"] += 1
            continue
        asking[int(requests.pool[number])].append(number)
    admission.begin()
    for pool in sorted({*running, *asking}):
        # Bid, is new, size, row or number: those who run win among equals.
        bids = [
            (int(requests.offer[leases.request[row]]), 0, int(leases.gpus[row]), row)
            for row in running[pool]
        ] + [
            (int(requests.offer[number]), 1, int(requests.gpus[number]), number)
            for number in asking[pool]
        ]
        bids.sort(key=lambda bid: (-bid[0], bid[1], bid[3]))
        room = admission.room[pool] + sum(bid[2] for bid in bids if not bid[1])
        price, out, winners = of.tariff.floor[pool], [], []
        for bid in bids:
            if bid[0] >= of.tariff.floor[pool] and bid[2] <= room:
                room -= bid[2]
                winners.append(bid)
                continue
            price = max(price, bid[0]) if bid[0] >= of.tariff.floor[pool] else price
            out.append(bid)
        # A large bid that did not fit may lie above a small one that did: nobody pays above his.
        losers = np.array([bid[3] for bid in out if not bid[1]], dtype=np.int64)
        of.leave(losers, now, market=True)
        of.standing += [bid[3] for bid in out if bid[1]]
        # The block's money is held at the old price: a new one holds from the next block on.
        for offer, is_new, gpus, number in winners:
            rate = min(price, offer)
            if not is_new:
                of.next_rates[number] = rate
                continue
            seconds, tenant = int(requests.seconds[number]), int(requests.tenant[number])
            tier, at = int(requests.tier[number]), int(requests.at[number])
            free = admission.room[pool]
            if gpus > free:  # those who leave are not gone yet: it starts when they are
                of.standing.append(number)
                continue
            lease = Again(
                request=number, pool=pool, tier=tier, gpus=gpus, tenant=tenant,
                payer=of.till.wallet(tenant), payee=of.till.income(tenant), rate=rate,
                seconds=seconds, until=at + seconds, not_before=0, evictions=0,
                checkpoint=int(requests.checkpoint[number]),
            )  # fmt: skip
            if admission.start(lease, now=now, at=min(max(at, now), now + STEP - 1)):
                of.tally.admitted[tier] += 1
            else:
                of.tally.refused["unpaid"] += 1
    admission.commit()
