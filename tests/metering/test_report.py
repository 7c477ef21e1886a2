"""What a report is written as is what is read back, and what the database takes in."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.db import Database
from sublet.core.errors import Invalid
from sublet.core.ids import new_id
from sublet.core.money import Rate
from sublet.market.price import Price
from sublet.metering import intake
from sublet.metering.report import Report
from sublet.metering.usage import Line, Outcome, Usage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
# What an application can be made to put into a name; NUL is refused long before.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
COUNT = st.integers(0, 2**62)


def line(price: int, quantity: int, nanos: int = 3, per: int = 7) -> Line:
    rate = Rate(nanos=nanos, per=per)
    return Line(price=Price(id=price, sku="s", rate=rate, happened_at=NOON), quantity=quantity)


def usage(**given: object) -> Usage:
    facts: dict[str, object] = {
        "id": new_id(), "source": "gateway:test", "sequence": 1, "tenant_id": new_id(),
        "model": "m", "request_id": "r", "outcome": Outcome.COMPLETED, "happened_at": NOON,
    }  # fmt: skip
    return Usage(**facts | given)  # type: ignore[arg-type]


@given(TEXT, TEXT, COUNT, st.lists(COUNT, max_size=5))
def test_a_line_is_read_back(model: str, request: str, sequence: int, counts: list[int]) -> None:
    fact = usage(model=model, request_id=request, sequence=sequence)
    lines = [line(number, count) for number, count in enumerate(counts)]
    report = Report.write(fact, lines)
    assert report.line.count(b"\n") == 1
    assert Report.read(report.line) == report
    assert (report.id, report.tenant_id, report.sequence) == (fact.id, fact.tenant_id, sequence)
    assert report.happened_at == NOON
    assert report.nanos == sum(one.price.rate.charge(one.quantity).nanos for one in lines)


@pytest.mark.parametrize("line", [b"", b"\n", b"a\tb\n", b"\t" * 20 + b"\n", b"x"])
def test_what_is_no_report_is_said_so(line: bytes) -> None:
    with pytest.raises(Invalid):
        Report.read(line)


def test_a_line_that_was_cut_is_no_report() -> None:
    """Its total would be read, and be too small."""
    whole = Report.write(usage(lease_id=new_id(), model=None), [line(1, 10**9)])
    assert Report.read(whole.line) == whole
    for length in range(len(whole.line)):
        with pytest.raises(Invalid):
            Report.read(whole.line[:length])
    with pytest.raises(Invalid):
        Report.read(b"\xff" + whole.line)


def test_a_line_names_its_lease_or_its_model() -> None:
    lease = usage(lease_id=UUID(int=5), model=None)
    written = Report.write(lease, []).line.decode().split("\t")
    assert written[4:8] == ["\\N", UUID(int=5).hex, "\\N", "r"]


HARD = 'a\\b\tc\nd\re"{},\\N é'


def test_the_database_takes_every_field_as_it_was(db: Database) -> None:
    fact = usage(
        api_key_id=new_id(), model=HARD, request_id=HARD, input_tokens=1, cache_read_tokens=2,
        cache_write_tokens=3, output_tokens=4, reasoning_tokens=5, delivered_tokens=6,
        outcome=Outcome.ABORTED,
    )  # fmt: skip
    report = Report.write(fact, [line(8, 100), line(9, 7)])
    with db.transaction() as tx:
        intake.stage(tx, [report])
        new = intake.add_usages(tx, [report], now=NOON)
        transfer = new_id()
        intake.add_charges(tx, new, staged=1, transfers={fact.tenant_id: transfer}, now=NOON)
    with db.transaction() as tx:
        row = tx.execute("SELECT * FROM usage").fetchone()
        charge = tx.execute("SELECT * FROM charge").fetchone()
    assert row is not None and charge is not None
    for name in Usage.__dataclass_fields__:
        assert row[name] == getattr(fact, name), name
    assert charge["usage_id"] == fact.id and charge["tenant_id"] == fact.tenant_id
    assert (charge["price_ids"], charge["quantities"]) == ([8, 9], [100, 7])
    assert charge["amounts"] == [43, 3]
    assert (charge["amount_nanos"], charge["transfer_id"]) == (46, transfer)


def test_a_report_sent_twice_counts_once_also_within_one_batch(db: Database) -> None:
    first, second, third = (
        Report.write(usage(id=UUID(int=number), sequence=number), [line(1, 7)])
        for number in (1, 2, 3)
    )
    assert taken(db, [first, second]) == {first.id, second.id}
    assert taken(db, [second, third, first]) == {third.id}
    assert taken(db, [first, second, third]) == set()
    with db.transaction() as tx:
        row = tx.execute(
            "SELECT (SELECT count(*) FROM usage) AS u, (SELECT count(*) FROM charge) AS c"
        ).fetchone()
    assert row == {"u": 3, "c": 3}


def taken(db: Database, reports: list[Report]) -> set[UUID]:
    with db.transaction() as tx:
        intake.stage(tx, reports)
        new = intake.add_usages(tx, reports, now=NOON)
        transfers = {report.tenant_id: new_id() for report in reports}
        intake.add_charges(tx, new, staged=len(reports), transfers=transfers, now=NOON)
    return new
