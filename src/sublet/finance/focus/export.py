"""FOCUS datasets as files, written while they are read: memory holds one batch of rows at a time.

Rows that follow from a charge are made by PostgreSQL and come by COPY; what many of them share (see
`Shape`) is worked out once in a batch. Lines of invoices that are no usage are a row each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, LiteralString
from uuid import UUID

from sublet.core.db import Tx
from sublet.finance.focus import datasets, store
from sublet.finance.focus.columns import DECIMALS, Dataset, Form, Version, columns_of
from sublet.finance.focus.shape import Shape, instant, one_row
from sublet.finance.focus.store import Document
from sublet.invoices.invoice import Line
from sublet.metering.reservation_meter import minimum_id

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS: Final = 50_000  # in a batch
_COPIED: Final = (
    "shape", "x_UsageId", "ResourceId", "contract", "CapacityReservationStatus", "ChargePeriodStart",
    "ChargePeriodEnd", "BilledCost", "PricingQuantity", "ListUnitPrice", "ContractedUnitPrice",
    "ListCost", "ContractedCost", "ContractApplied",
)  # fmt: skip
_COPIES: Final[tuple[LiteralString, ...]] = (
    store.QUERIES["copy_tokens"],
    store.QUERIES["copy_leases"],
    store.QUERIES["copy_windows"],
)


def export(
    tx: Tx, dataset: Dataset, version: Version, form: Form, *, month: date, seller: str,
    tenant_id: UUID | None, now: datetime,
) -> Iterator[bytes]:  # fmt: skip
    """Yield a dataset of a month as a file, piece by piece.

    Args:
        tx: sees one unmoving view of the records.
        dataset: which one.
        version: of FOCUS.
        form: of the file.
        month: any day of it; months are the tenants', by their time zones.
        seller: who issues invoices.
        tenant_id: whose; None: everybody's.
        now: the present instant.
    """
    columns = columns_of(dataset, version)
    sink = _Sink()
    write, close = _writer(sink, columns, form)
    for batch in _together(_batches(tx, dataset, columns, form, month, seller, tenant_id, now)):
        write(batch)
        if sink.size >= 1 << 16:
            yield sink.take()
    close()
    yield sink.take()


def _batches(
    tx: Tx, dataset: Dataset, columns: Sequence[str], form: Form, month: date, seller: str,
    tenant_id: UUID | None, now: datetime,
) -> Iterator["pa.RecordBatch"]:  # fmt: skip
    schema = _schema(columns, form)
    if dataset is Dataset.CONTRACT_COMMITMENT:
        rows = datasets.contract_commitments(tx, month, seller, tenant_id, now=now)
        yield from _plain_batches(rows, schema)
        return
    documents = store.list_documents(tx, month, tenant_id=tenant_id, now=now)
    match dataset:
        case Dataset.BILLING_PERIOD:
            yield from _plain_batches(datasets.billing_periods(documents, seller, now=now), schema)
        case Dataset.INVOICE_DETAIL:
            yield from _plain_batches(datasets.invoice_details(tx, documents, seller), schema)
        case Dataset.COST_AND_USAGE:
            for document in documents:
                if not document.is_void:
                    yield from _costs(tx, document, schema, seller)


def _costs(
    tx: Tx, document: Document, schema: "pa.Schema", seller: str
) -> Iterator["pa.RecordBatch"]:
    lines = [] if document.invoice is None else store.lines_of(tx, document)
    common = datasets.common(document, seller) | {
        "ProviderName": seller,
        "PublisherName": seller,
        "ServiceProviderName": seller,
        "HostProviderName": seller,
    }
    if document.span is not None:
        for query in _COPIES:
            for block in _copied(tx, query, store.parameters(document.span)):
                yield _usage_batch(block, document, lines, common, schema)
    yield from _plain_batches(_other_rows(tx, document, lines, common), schema)


def _other_rows(
    tx: Tx, document: Document, lines: list[Line], common: Mapping[str, str | None]
) -> Iterator[dict[str, str | None]]:
    """Yield a row for each line that is no usage."""
    given = [] if document.span is None else store.list_credits(tx, document.span)
    minimums = {
        minimum_id(found["contract_id"]): str(found["contract_id"])
        for found in tx.execute(
            store.QUERIES["list_commitments"],
            {"tenant_id": document.tenant_id, "starts_at": "-infinity", "ends_at": "infinity"},
        )
    }
    if document.invoice is None:
        for found in given:
            line = store.plain(
                "credit", -int(found["amount_nanos"]), pool=found["pool"], tier=_tier(found)
            )
            yield dict(common) | one_row(line) | _span_of(found)
        for line, at, transfer_id in store.open_lines(tx, document):
            yield (
                dict(common)
                | one_row(line)
                | _moment(at)
                | _applied(minimums.get(transfer_id), line)
            )
        return
    invoice = document.invoice
    period = {
        "ChargePeriodStart": instant(invoice.starts_at),
        "ChargePeriodEnd": instant(invoice.ends_at),
    }
    left = iter(given)
    for number, line in enumerate(lines, start=1):
        if line.what == "usage":
            continue
        row = dict(common) | one_row(line, corrects=document.corrected is not None) | period
        row["InvoiceDetailId"] = datasets.detail_id(invoice.label, number)
        if line.what == "credit":
            row |= _span_of(next(left))
        if line.what == "minimum":
            transfer_id = UUID(line.note.removeprefix("record "))
            row |= _applied(minimums.get(transfer_id), line)
        yield row


def _tier(found: Mapping[str, Any]) -> str:
    return "reserved" if found["reservation_id"] else "on_demand"


def _span_of(found: Mapping[str, Any]) -> dict[str, str | None]:
    """Return when the promise that a credit is for was broken, and of what it was."""
    lease, window = found["lease_id"], found["reservation_id"]
    return {
        "ChargePeriodStart": instant(found["happened_at"]),
        "ChargePeriodEnd": instant(max(found["promised_until"], found["happened_at"] + _SECOND)),
        "ResourceId": str(lease or window),
        "ResourceType": "GPU lease" if lease else "GPU reservation",
        "CapacityReservationId": str(window) if window else None,
    }


_SECOND: Final = timedelta(seconds=1)


def _moment(at: datetime) -> dict[str, str | None]:
    return {"ChargePeriodStart": instant(at), "ChargePeriodEnd": instant(at + _SECOND)}


def _applied(contract_id: str | None, line: Line) -> dict[str, str | None]:
    return {"ContractApplied": datasets.minimum_applied(contract_id, line.amount_nanos)}


# ── with Arrow ───────────────────────────────────────────────────────────────────────────


def _copied(tx: Tx, query: LiteralString, row: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield what COPY sends, so many rows together."""
    with tx.cursor() as cursor, cursor.copy(query, row) as copy:
        rows: list[bytes] = []
        for data in copy:
            rows.append(bytes(data))
            if len(rows) >= _ROWS:
                yield b"".join(rows)
                rows.clear()
        if rows:
            yield b"".join(rows)


def _usage_batch(
    block: bytes, document: Document, lines: Sequence[Line], common: Mapping[str, str | None],
    schema: "pa.Schema",
) -> "pa.RecordBatch":  # fmt: skip
    import pyarrow as pa  # noqa: PLC0415 -- slow to load, and only exports need it
    from pyarrow import csv  # noqa: PLC0415

    types = {
        name: schema.field(name).type if name in schema.names else pa.string() for name in _COPIED
    }
    table = csv.read_csv(
        pa.BufferReader(block),
        read_options=csv.ReadOptions(column_names=list(_COPIED), use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ).combine_chunks()  # fmt: skip
    count = table.num_rows
    shapes = table["shape"].combine_chunks().dictionary_encode()
    derived = [_derive(text, document, lines) for text in shapes.dictionary.to_pylist()]
    status = table["CapacityReservationStatus"]
    unused = pa.compute.fill_null(pa.compute.equal(status, "Unused"), fill_value=False)
    quantity = table["PricingQuantity"]
    zero = pa.scalar("0" if pa.types.is_string(quantity.type) else 0).cast(quantity.type)
    made = {
        "EffectiveCost": table["BilledCost"],
        "PricingCurrencyEffectiveCost": table["BilledCost"],
        "PricingCurrencyListUnitPrice": table["ListUnitPrice"],
        "PricingCurrencyContractedUnitPrice": table["ContractedUnitPrice"],
        "ConsumedQuantity": pa.compute.if_else(unused, zero, quantity),
        "CapacityReservationId": pa.compute.if_else(
            pa.compute.is_null(status), pa.scalar(None, pa.string()), table["ResourceId"]
        ),
    }
    columns = []
    for field in schema:
        name = field.name
        if name in made:
            column = made[name]
        elif name in _COPIED:
            column = table[name]
        elif derived and name in derived[0]:
            column = pa.array([one[name] for one in derived], field.type).take(shapes.indices)
        else:
            column = pa.repeat(pa.scalar(common.get(name), field.type), count)
        columns.append(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _derive(text: str, document: Document, lines: Sequence[Line]) -> dict[str, str | None]:
    shape = Shape.read(text)
    detail = None
    if document.label is not None:
        number = next(n for n, line in enumerate(lines, start=1) if shape.is_of(line))
        detail = datasets.detail_id(document.label, number)
    return shape.columns() | {"InvoiceDetailId": detail}


def _plain_batches(
    rows: Iterator[dict[str, str | None]], schema: "pa.Schema"
) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa  # noqa: PLC0415 -- as above

    def batch(some: list[dict[str, str | None]]) -> "pa.RecordBatch":
        return pa.RecordBatch.from_arrays(
            [
                pa.array([row.get(field.name) for row in some], pa.string()).cast(field.type)
                for field in schema
            ],
            schema=schema,
        )

    some: list[dict[str, str | None]] = []
    for row in rows:
        some.append(row)
        if len(some) >= _ROWS:
            yield batch(some)
            some = []
    if some:
        yield batch(some)


def _together(batches: Iterator["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
    """Put small batches together: a group of rows in the file each."""
    import pyarrow as pa  # noqa: PLC0415 -- as above

    some: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        some.append(batch)
        count += batch.num_rows
        if count >= _ROWS:
            yield pa.concat_batches(some)
            some, count = [], 0
    if some:
        yield pa.concat_batches(some)


def _schema(columns: Sequence[str], form: Form) -> "pa.Schema":
    """Return the types: in CSV all is text already, as short as it can be written."""
    import pyarrow as pa  # noqa: PLC0415 -- as above

    decimal = pa.string() if form is Form.CSV else pa.decimal128(38, 18)
    return pa.schema([(name, decimal if name in DECIMALS else pa.string()) for name in columns])


class _Sink:
    """A file that only remembers what was written since the last look."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        made = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return made


def _writer(
    sink: _Sink, columns: Sequence[str], form: Form
) -> tuple[Callable[["pa.RecordBatch"], object], Callable[[], object]]:
    """Return how to write a batch and how to end the file."""
    schema = _schema(columns, form)
    if form is Form.CSV:
        from pyarrow import csv  # noqa: PLC0415 -- as above

        text = csv.CSVWriter(sink, schema, write_options=csv.WriteOptions(quoting_style="needed"))
        return text.write_batch, text.close
    from pyarrow import parquet  # noqa: PLC0415 -- as above

    file = parquet.ParquetWriter(sink, schema, compression="zstd")
    return file.write_batch, file.close
