"""Reading quotes of rental prices from CSV, whatever their columns are called."""

import csv
import gzip
import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

from sublet.core.errors import Invalid
from sublet.market.index import Quote

FIELDS: Final = ("date", "model", "price", "source", "gpus", "known")
_DEFAULTS: Final = {"date": "date", "model": "model", "price": "usd_gpu_hour"}
_NAMED_FAULTS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    quotes: tuple[Quote, ...]
    skipped: int  # lines that could not be used
    faults: tuple[str, ...]  # the first of them


def read_quotes(path: Path, columns: dict[str, str]) -> Read:
    """Read quotes; a line that cannot be used is counted, named and left out.

    Args:
        path: CSV with a header, may be gzipped.
        columns: what the file calls `FIELDS`. Without `source` the file is one source, without
            `gpus` all weigh the same, without `known` a quote was known on its day.

    Raises:
        Invalid: the file cannot be read, or a column is not there.
    """
    names = _DEFAULTS | columns
    quotes: list[Quote] = []
    faults: list[str] = []
    skipped = 0
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in names.values() if name not in (rows.fieldnames or [])]
            if missing:
                raise Invalid(
                    f"{path.name} has no column {missing[0]!r}; it has"
                    f" {', '.join(rows.fieldnames or ['none'])}: name yours with --column"
                )
            for number, row in enumerate(rows, start=2):
                try:
                    quotes.append(_quote(row, names, path.name))
                except (ValueError, TypeError) as error:
                    skipped += 1
                    if len(faults) < _NAMED_FAULTS:
                        faults.append(f"{path.name}, line {number}: {error}")
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise Invalid(f"cannot read {path}: {error}") from None
    return Read(quotes=tuple(quotes), skipped=skipped, faults=tuple(faults))


def _quote(row: dict[str, str], names: dict[str, str], file: str) -> Quote:
    day = date.fromisoformat(row[names["date"]][:10])
    usd = float(row[names["price"]])
    gpus = float(row[names["gpus"]]) if "gpus" in names else 1.0
    model = row[names["model"]].strip()
    if not (math.isfinite(usd) and usd > 0 and math.isfinite(gpus) and gpus > 0 and model):
        raise ValueError(
            "a price and a number of GPUs are more than nothing, and a model has a name"
        )
    return Quote(
        day=day,
        model=model,
        source=row[names["source"]].strip() if "source" in names else file,
        usd=usd,
        gpus=gpus,
        known_on=date.fromisoformat(row[names["known"]][:10]) if "known" in names else day,
    )
