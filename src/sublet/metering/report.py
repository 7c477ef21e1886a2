"""A use and its charge in one line of text: what spools keep, and what Postgres reads.

The line is a row in COPY's text format, so a spool's bytes go into the database as they are:
nobody parses a million rows to write them again. Its columns are those of the temporary table
`incoming`, see `intake`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self
from uuid import UUID

from sublet.core.errors import Invalid
from sublet.metering.usage import Line, Usage

_COLUMNS: Final = 21
_ID, _SEQUENCE, _TENANT, _TOTAL = 0, 2, 3, -1
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL: Final = "\\N"


@dataclass(frozen=True, slots=True)
class Report:
    """One written line, and what of it decides where its money goes."""

    id: UUID
    tenant_id: UUID
    nanos: int  # the charge, all lines together
    line: bytes  # ends with a newline

    @classmethod
    def write(cls, usage: Usage, lines: Sequence[Line]) -> Self:
        """Write down `usage` and what its `lines` cost, each rounded by itself."""
        amounts = [line.price.rate.charge_nanos(line.quantity) for line in lines]
        total = sum(amounts)
        key, lease, when = usage.api_key_id, usage.lease_id, usage.happened_at
        # Ids without their dashes, which Postgres and Python both read: half the work.
        line = (
            f"{usage.id.int:032x}\t{_text(usage.source)}\t{usage.sequence}\t"
            f"{usage.tenant_id.int:032x}\t{_NULL if key is None else f'{key.int:032x}'}\t"
            f"{_NULL if lease is None else f'{lease.int:032x}'}\t"
            f"{_text(usage.model)}\t{_text(usage.request_id)}\t{usage.gpu_seconds}\t"
            f"{usage.input_tokens}\t{usage.cache_read_tokens}\t{usage.cache_write_tokens}\t"
            f"{usage.output_tokens}\t{usage.reasoning_tokens}\t{usage.delivered_tokens}\t"
            f"{usage.outcome}\t"
            f"{(when if when.tzinfo is UTC else when.astimezone(UTC)).isoformat()}\t"
            f"{_array([line.price.id for line in lines])}\t"
            f"{_array([line.quantity for line in lines])}\t{_array(amounts)}\t{total}\n"
        )
        return cls(usage.id, usage.tenant_id, total, line.encode())

    @classmethod
    def read(cls, line: bytes) -> Self:
        """Return what `write` wrote.

        Raises:
            Invalid: it is no such line.
        """
        fields = line.decode(errors="replace").rstrip("\n").split("\t")
        if len(fields) != _COLUMNS or not line.endswith(b"\n"):
            raise Invalid(f"a report has {_COLUMNS} fields, not {len(fields)}")
        try:
            id_, tenant_id = UUID(fields[_ID]), UUID(fields[_TENANT])
            return cls(id_, tenant_id, int(fields[_TOTAL]), line)
        except ValueError as error:
            raise Invalid(f"a report cannot be read: {error}") from error

    @property
    def sequence(self) -> int:
        return int(self.line.split(b"\t", _SEQUENCE + 1)[_SEQUENCE])

    @property
    def happened_at(self) -> datetime:
        return datetime.fromisoformat(self.line.split(b"\t")[16].decode())


def _text(text: str | None) -> str:
    if text is None:
        return _NULL
    # What is printable and has no backslash has nothing to escape, and nearly all is so.
    return text if text.isprintable() and "\\" not in text else text.translate(_ESCAPES)


def _array(numbers: Sequence[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"
