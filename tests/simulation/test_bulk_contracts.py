"""Contracts in a simulated fleet are billed as contracts are: by their terms, each day once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sublet.core.money import NANOS
from sublet.leases.contract import bill, total
from sublet.simulation.play import set_stage
from sublet.simulation.run import Simulation, with_rules
from sublet.simulation.scenario import CONTRACT, parse_scenario

# Nobody else wants anything, but for internal jobs on the third day: all that there is.
CALM = """
name = "One contract"
days = 5
warmup_days = 2
[[site]]
name = "north"
[[pool]]
model = "a100"
gpus = 160
notice_seconds = 60
demand = { mean = 0.0, jobs = 0.0, drift = 0.0, day = 0.0 }
[[arrivals]]
tier = "interruptible"
per_day = 0
hours = 1
offer_usd_hour = 1
[[contract]]
share = 0.5
days = 40
ramp = [[0, 0.5], [1, 1.0]]
usd_hour = 2
"""
TAKES_ALL = '[[event]]\nkind = "launch"\nday = 2.25\nhours = 0.1\nshare = 1.0\n'
GIVES_BACK = '[[event]]\nkind = "release"\nday = 3\nhours = 0.1\nshare = 1.0\n'


def play(text: str, rules: str = "sublet") -> Simulation:
    scenario = with_rules(parse_scenario(text, folder=Path()), rules)
    stage = set_stage(scenario, 1, plans=False)
    run = Simulation(scenario, stage.world, stage.requests, stage.plans, seed=1)
    played = run.run()
    assert played.violations == 0, played.messages
    net = played.revenue_by_tier[CONTRACT] - played.credits_by_tier[CONTRACT]
    assert net == played.revenue_nanos
    if rules == "sublet":
        begin = datetime.min.replace(tzinfo=UTC)
        (deal,) = run.admission.deals.all
        assert net == total(bill(deal.contract, begin, deal.contract.ends_at)).nanos
    return run


def net_usd(run: Simulation) -> float:
    return int(run.till.revenue[CONTRACT] - run.till.credits[CONTRACT]) / NANOS


def test_a_contract_pays_for_each_day_of_each_step() -> None:
    # One day of forty GPUs and four of eighty, at two dollars.
    assert net_usd(play(CALM)) == 2 * 24 * (40 + 4 * 80)


@pytest.mark.parametrize("gives_back", [False, True])
def test_what_is_taken_back_is_paid_for_no_more_and_no_less(gives_back: bool) -> None:
    run = play(CALM + TAKES_ALL + (GIVES_BACK if gives_back else ""))
    # Nothing of the second step is its tenant's from then on, whether its GPUs are free again.
    assert net_usd(run) == 2 * 24 * (40 + 1.25 * 80)
    assert run.till.credits[CONTRACT] == round(2 * 24 * 2.75 * 80 * NANOS)
    assert run.tally.evictions[CONTRACT] == 16


def test_by_the_rules_of_others_what_ran_is_paid_and_comes_back() -> None:
    used = 40 + 1.25 * 80
    assert net_usd(play(CALM + TAKES_ALL, "kueue")) == pytest.approx(2 * 24 * used)
    back = net_usd(play(CALM + TAKES_ALL + GIVES_BACK, "kueue"))
    assert back == pytest.approx(2 * 24 * (used + 2 * 80), rel=1e-3)


def test_the_agreed_share_of_what_is_taken_back_is_given_back() -> None:
    terms = CALM.replace("usd_hour = 2", "usd_hour = 2\nshortfall_percent = 25")
    assert net_usd(play(terms + TAKES_ALL)) == 2 * 24 * (40 + 4 * 80 - 2.75 * 80 / 4)


def test_what_is_late_is_paid_for_from_when_it_is_there() -> None:
    early = TAKES_ALL.replace("2.25", "0").replace("share = 1.0", "share = 0.875")
    run = play(CALM + early + GIVES_BACK.replace("day = 3", "day = 0.75"))
    # Twenty of forty are there at first, all of them after three quarters of a day.
    assert net_usd(run) == pytest.approx(2 * 24 * (40 + 4 * 80 - 0.75 * 20), rel=1e-3)
    assert run.tally.late_contract == 1


def test_a_recalled_contract_is_owed_until_its_notice_is_over() -> None:
    recalled = CALM.replace(
        "usd_hour = 2", "usd_hour = 2\nrecall_day = 1.5\nrecall_notice_days = 2"
    )
    run = play(recalled)
    assert net_usd(run) == 2 * 24 * (40 + 2.5 * 80)
    assert run.till.credits[CONTRACT] == 0 and run.tally.evictions[CONTRACT] == 0
    (deal,) = run.admission.deals.all
    assert deal.contract.ends_at - deal.contract.starts_at == timedelta(days=3.5)
    assert run.admission.promised[0, 3 * 24 + 13 :].sum() == 0
