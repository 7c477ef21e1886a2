"""Absorption: how old blocks were when leases took them, and what that says of the market."""

import pytest

from sublet.market.absorption import Absorption, Sample, Signal, absorb

HOUR = 3_600
NANOS = 10**9


def played(*slots: tuple[float, float], usd: tuple[float, float] = (2.0, 2.0)) -> Absorption:
    """Play slots of an hour: GPUs that internal jobs left, and GPUs leased."""
    samples = [
        Sample(
            at=n * HOUR, offered=offered, leased=leased,
            paid_nanos=round(leased * usd[n >= len(slots) // 2] * NANOS),
            paid_gpu_seconds=round(leased * HOUR),
        )
        for n, (offered, leased) in enumerate(slots)
    ]  # fmt: skip
    return absorb(samples, slot_seconds=HOUR, floor_nanos=NANOS)


def test_the_oldest_block_is_taken_first_and_the_newest_withdrawn() -> None:
    # Ten come free at once, ten more at three; internal jobs take five back at four; eight are
    # leased at five, all of them of the first block.
    found = played((10, 0), (10, 0), (10, 0), (20, 0), (15, 0), (15, 8))
    assert (found.taken_gpus, found.withdrawn_gpus, found.waiting_gpus) == (8, 5, 7)
    assert found.hours_to_half == 5
    assert found.sold_share == pytest.approx(8 / 80)
    assert found.signal is Signal.UNKNOWN, "six hours say nothing"


def test_what_is_freed_and_leased_in_one_slot_was_taken_at_once() -> None:
    found = played((10, 10), (20, 20))
    assert (found.taken_gpus, found.hours_to_half, found.waiting_gpus) == (20, 0, 0)


def test_taken_at_once_at_firm_prices_is_a_mismatch() -> None:
    slots = [(10.0 + n % 3, 9.0 + n % 3) for n in range(48)]
    found = played(*slots, usd=(2.0, 2.0))
    assert found.signal is Signal.MISMATCH
    assert found.over_floor == 2 and found.nanos_per_gpu_hour == 2 * NANOS
    assert played(*slots, usd=(2.0, 1.8)).signal is Signal.MIXED


def test_slow_and_falling_is_oversupply() -> None:
    slots = [(100.0, 10.0 + n // 4) for n in range(48)]
    found = played(*slots, usd=(2.0, 1.6))
    assert found.signal is Signal.OVERSUPPLY
    assert found.price_change == pytest.approx(-0.2, abs=1e-6)
    assert played(*slots, usd=(2.0, 2.1)).signal is Signal.MIXED


def test_nothing_on_offer_is_no_signal() -> None:
    assert played(*[(0.0, 0.0)] * 48).signal is Signal.UNKNOWN
    nobody = played(*[(10.0, 0.0)] * 48)
    assert (nobody.signal, nobody.hours_to_half, nobody.price_change) == (
        Signal.OVERSUPPLY, None, None,
    )  # fmt: skip
