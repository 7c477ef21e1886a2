"""Jobs as a record of them tells: who held how many GPUs, when, and who waited.

Readers fill one frame; `Jobs` is what is left of it once doubles and overlaps are dealt with.
Instants are whole seconds since the epoch; a null end means not over yet.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from sublet.planner.idle.lines import Faults

# What a reader fills. A job that never started has no `start`; it waited until `end`.
SCHEMA: Final = {
    "file": pl.UInt16,  # which of the files, by its place
    "line": pl.Int64,
    "id": pl.String,  # null where the record names none: then it is never a double
    "submit": pl.Int64,  # from when on it waited
    "start": pl.Int64,
    "end": pl.Int64,
    "gpus": pl.Int64,
    "pool": pl.String,
    "quota": pl.String,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Jobs that held GPUs or waited for them."""

    frame: pl.DataFrame  # as in SCHEMA, less `file`, `line` and `id`
    doubles: int = 0  # rows that another row tells better

    @property
    def first_end(self) -> int | None:
        """The first instant at which a job that had run ended.

        A record of what ran since some instant holds every job that ended later, and none
        that ended before: from here on it is whole.
        """
        ran = self.frame.filter(pl.col("start").is_not_null())
        first = ran["end"].min()
        return first if isinstance(first, int) else None

    @property
    def first_known(self) -> int | None:
        """The first instant that the record speaks of."""
        earliest = self.frame.select(pl.min_horizontal(pl.col("submit", "start").min())).item()
        return earliest if isinstance(earliest, int) else None

    @property
    def last_known(self) -> int | None:
        """The latest instant that the record speaks of."""
        latest = self.frame.select(
            pl.max_horizontal(pl.col("submit").max(), pl.col("start").max(), pl.col("end").max())
        ).item()
        return latest if isinstance(latest, int) else None


def settle(frame: pl.DataFrame, names: list[str], faults: Faults) -> tuple[pl.DataFrame, int]:
    """Keep one row for each run of a job, and let no job run twice at once.

    Two records that overlap tell of some jobs twice: what the later file says stands, and an
    end that is known stands before one that is not. A job that was requeued has a row for
    each run; if two runs overlap, the earlier one ends where the later starts.

    Args:
        frame: with the columns `file`, `line`, `id`, `start`, `end`, and any others.
        names: the files' names, by place.
        faults: gets the overlaps.

    Returns:
        the rows that stand, and how many were doubles.
    """
    doubtful = frame.filter(pl.col("id").is_not_null() & pl.col("id").is_duplicated())
    if not doubtful.height:
        return frame, 0
    sure = frame.filter(pl.col("id").is_null() | ~pl.col("id").is_duplicated())
    doubtful = doubtful.sort(pl.col("end").is_not_null(), "file", "line")
    # A job that waits in one record and ran in another ran.
    started = pl.col("start").is_not_null().any().over("id")
    kept = doubtful.filter(pl.col("start").is_not_null() | ~started)
    kept = kept.unique(["id", "start"], keep="last", maintain_order=True)
    doubles = doubtful.height - kept.height
    kept = kept.sort("id", "start", nulls_last=True)
    following = pl.col("start").shift(-1).over("id")
    overlaps = (following < pl.col("end")) | (pl.col("end").is_null() & following.is_not_null())
    wrong = kept.with_columns(next_line=pl.col("line").shift(-1).over("id")).filter(overlaps)
    for (place,), rows in wrong.sort("line").group_by("file", maintain_order=True):
        faults.add_rows(
            names[int(str(place))],
            rows.with_columns(
                why=pl.format(
                    "job {} runs on when line {} starts it again: counted until then",
                    "id", "next_line",
                )
            ),
        )  # fmt: skip
    kept = kept.with_columns(end=pl.when(overlaps).then(following).otherwise(pl.col("end")))
    return pl.concat([sure, kept]), doubles


def instants(text: pl.Series) -> pl.Series:
    """Read a column of text as seconds since the epoch; null where it is no instant.

    As ISO 8601, in UTC where it names no zone, or a number of seconds.
    """
    found = text.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False).dt.epoch("s")
    others = (found.is_null() & text.is_not_null()).arg_true()
    if not len(others):
        return found
    left = text.gather(others)
    plain = left.str.replace(" ", "T", literal=True)
    read = [
        left.cast(pl.Int64, strict=False),
        plain.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False).dt.epoch("s"),
        plain.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False).dt.epoch("s"),
        plain.str.to_datetime("%Y-%m-%dT%H:%M", strict=False).dt.epoch("s"),
        plain.str.to_datetime("%Y-%m-%d", strict=False).dt.epoch("s"),
        left.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False),
    ]
    return found.scatter(others, pl.select(pl.coalesce(read)).to_series())
