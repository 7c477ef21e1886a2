"""The register as CSV: every line that is wrong is named."""

from datetime import date

import pytest
from tests.finance.lots import usd

from sublet.core.errors import Invalid
from sublet.finance.asset import Kind, Method
from sublet.finance.register import read_changes, read_curves, read_lots

HEADER = "lot,kind,site,pool,generation,gpus,bought_on,cost,life_months,salvage,watts_per_gpu"
GOOD = f"{HEADER}\na,gpus,north,h100,H100,8,2026-01-15,400000,60,40000,1400\n"


def test_a_lot_is_read_with_what_is_unsaid() -> None:
    (lot,) = read_lots(GOOD, "lots.csv")
    assert (lot.name, lot.kind, lot.gpus, lot.cost) == ("a", Kind.GPUS, 8, usd(400_000))
    assert lot.in_service_on == lot.bought_on == date(2026, 1, 15)
    assert (lot.method, lot.idle_watts, lot.pue, lot.debt) == (Method.STRAIGHT, 1400, 1, None)
    assert lot.megawatts == 8 * 1400 / 1e6


def test_another_currency_is_translated_once_at_the_day_s_rate() -> None:
    text = (
        "lot,kind,site,bought_on,cost,life_months,currency,usd_per_unit,salvage\n"
        "hall,building,north,2026-01-15,1000.10,240,EUR,1.085,100\n"
    )
    (lot,) = read_lots(text, "lots.csv")
    assert lot.cost == usd(1085.1085)
    assert lot.salvage == usd(108.5)
    with pytest.raises(Invalid, match="line 2: usd_per_unit is missing"):
        read_lots(text.replace("1.085", ""), "lots.csv")


CURVES = """curve,dated,source,months,share
brokers,2026-11-01,"a list, by mail",0,1
brokers,2026-11-01,"a list, by mail",24,0.4
index,2026-10-01,an index,0,0.9
"""


def test_curves_are_read_with_who_says_so_and_when() -> None:
    curves = read_curves(CURVES, "curves.csv")
    assert set(curves) == {"brokers", "index"}
    assert (curves["brokers"].source, curves["brokers"].at(12)) == ("a list, by mail", 0.7)
    text = GOOD.replace("lot,", "method,curve,lot,").replace("\na,", "\neconomic,brokers,a,")
    (lot,) = read_lots(text.replace("40000,1400", "0,1400"), "lots.csv", curves)
    assert (lot.method, lot.curve) == (Method.ECONOMIC, curves["brokers"])
    (change,) = read_changes(
        "lot,effective_on,life_months,salvage,curve\na,2027-01-01,60,0,index\n", "c.csv", curves
    )
    assert change.curve == curves["index"]
    for old, new, why in (
        ('mail",24', 'post",24', "line 3: curve brokers has two sources"),
        ("24,0.4", "24,-1", "line 3: share must not be negative"),
        ("24,0.4", "0,0.4", "curve brokers: a value curve needs points whose ages rise"),
        ("an index", "", "curve index: a value curve needs its source"),
        ("2026-10-01", "soon", "line 4: dated is no day"),
    ):
        with pytest.raises(Invalid, match=why):
            read_curves(CURVES.replace(old, new), "curves.csv")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("60,", "-60,", "line 2: life_months must not be negative"),
        ("60,", "0,", "line 2: lot a: a life is 1 to 1200 months"),
        ("60,", "6.5,", "line 2: life_months must be a whole number"),
        ("400000,", ",", "line 2: cost is missing"),
        ("400000,", "0,", "line 2: lot a: the cost must be more than nothing"),
        ("400000,", "nan,", "line 2: cost must not be negative"),
        ("40000,1400", "400001,1400", "line 2: lot a: the salvage value"),
        ("2026-01-15", "15.1.2026", "line 2: bought_on is no day"),
        ("gpus,north", "gpu,north", "line 2: kind is one of gpus, building, other"),
        (",8,", ",0,", "line 2: lot a: GPUs have a count"),
        ("h100,H100", ",H100", "line 2: lot a: GPUs have a pool"),
        ("1400\n", "1400,7\n", "line 2: 12 values"),
        ("lot,kind", "lots,kind", "no column 'lot'"),
        ("watts_per_gpu\n", "watts\n", "a column 'watts'"),
        ("1400\n", "1400\na,gpus,north,h100,H100,8,2026-01-15,1,60,0,1\n", "line 3: lot a is there twice"),
        (GOOD[len(HEADER) + 1:], "", "holds no lot"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(old: str, new: str, why: str) -> None:
    assert old in GOOD
    with pytest.raises(Invalid) as error:
        read_lots(GOOD.replace(old, new, 1), "lots.csv")
    assert why in str(error.value)


def test_changes_are_read_and_held_to_their_columns() -> None:
    head = "lot,effective_on,life_months,salvage\n"
    (change,) = read_changes(f"{head}a,2027-01-01,72,1000\n", "lives.csv")
    assert (change.lot, change.life_months, change.salvage) == ("a", 72, usd(1_000))
    with pytest.raises(Invalid, match="line 3: life_months must not be negative"):
        read_changes(f"{head}a,2027-01-01,72,0\na,2028-01-01,-1,0\n", "lives.csv")
