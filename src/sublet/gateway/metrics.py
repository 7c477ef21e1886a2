"""What a gateway counts for Prometheus, all its processes together.

Prompts and answers are nowhere in it; its labels are models, outcomes and codes. A request adds a few
numbers in memory, and whichever process is asked adds up those of all (`board.py`).
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from sublet.gateway.board import Board
from sublet.gateway.bought.metrics import BoughtMetrics
from sublet.gateway.failures import TABLE, Kind
from sublet.gateway.tariff import Counts
from sublet.metering.usage import Outcome

_FIRST_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_EACH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MOST_MODELS: Final = 1000  # more names than that are counted as "other"
_OTHER: Final = "other"
_TOKENS: Final = ("input", "cache_read", "cache_write", "output", "reasoning")
_OUTCOMES: Final = tuple(Outcome)
_KINDS: Final = tuple(Kind)
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

# What is so now, of one process: as it last said, a second ago at most.
GAUGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "workers": "Processes that serve.",
        "running": "Requests that run.",
        "queued": "Requests that wait for money to be held.",
        "replica_requests": "Requests that replicas have of this gateway.",
        "held_nanos": "Money held in the ledger for requests, in nanos.",
        "committed_nanos": "Of it, given to requests that run.",
        "reports_waiting": "Reports that are not handed over yet.",
    }
)

# Where a series' numbers are, from its beginning: a histogram has a count for each bound and one for
# what is above the last, then the sum.
_OUTCOME_AT: Final = {outcome: index for index, outcome in enumerate(_OUTCOMES)}
_TOKENS_AT: Final = len(_OUTCOMES)
_FIRST_AT: Final = _TOKENS_AT + len(_TOKENS)
_EACH_AT: Final = _FIRST_AT + len(_FIRST_SECONDS) + 2
_SERIES: Final = _EACH_AT + len(_EACH_SECONDS) + 2
_KIND_AT: Final = {kind: index for index, kind in enumerate(_KINDS)}
_GAUGES_AT: Final = len(_KINDS)


def board(processes: int) -> Board:
    """Return the memory in which so many processes count: made before they are forked."""
    return Board(
        processes, single=len(_KINDS) + len(GAUGES), each=_SERIES, most=_MOST_MODELS
    )  # fmt: skip


def rest(shared: Board, process: int) -> None:
    """Note that a process is no more: nothing is so of it now, but what it counted stays."""
    at = shared.single(process) + _GAUGES_AT
    for index in range(len(GAUGES)):
        shared.numbers[at + index] = 0.0


class Metrics:
    """What one of the processes counts, and what all of them did."""

    def __init__(
        self,
        shared: Board | None = None,
        process: int = 0,
        bought: BoughtMetrics | None = None,
    ) -> None:
        self.bought = bought or BoughtMetrics()
        self._board = board(1) if shared is None else shared
        self._process = process
        self._numbers = self._board.numbers
        self._single = self._board.single(process)
        # One that was here before, and died, may have left some.
        self._models = dict(self._board.series(process))
        rest(self._board, process)

    def refused(self, kind: Kind) -> None:
        self._numbers[self._single + _KIND_AT[kind]] += 1

    def served(
        self,
        model: str,
        outcome: Outcome,
        counts: Counts,
        *,
        first_seconds: float | None,
        rest_seconds: float,
    ) -> None:
        """Count an answer.

        Args:
            model: what was asked.
            outcome: how it ended.
            counts: what is charged.
            first_seconds: until its first token; None: it was not streamed, or had none.
            rest_seconds: from its first token to its last.
        """
        numbers, at = self._numbers, self._models.get(model)
        if at is None:
            at = self._add(model)
        numbers[at + _OUTCOME_AT[outcome]] += 1
        tokens = at + _TOKENS_AT
        numbers[tokens] += counts.input_tokens
        numbers[tokens + 3] += counts.output_tokens
        for index, more in (
            (1, counts.cache_read_tokens),
            (2, counts.cache_write_tokens),
            (4, counts.reasoning_tokens),
        ):
            if more:
                numbers[tokens + index] += more
        if first_seconds is not None:
            self._observe(at + _FIRST_AT, _FIRST_SECONDS, first_seconds)
            if (further := counts.completion_tokens - 1) > 0:
                self._observe(at + _EACH_AT, _EACH_SECONDS, rest_seconds / further)

    def _observe(self, at: int, bounds: Sequence[float], value: float) -> None:
        self._numbers[at + bisect_left(bounds, value)] += 1
        self._numbers[at + len(bounds) + 1] += value

    def _add(self, model: str) -> int:
        at = (
            None if len(self._models) >= _MOST_MODELS - 1 else self._board.add(self._process, model)
        )
        if at is None:
            at = self._models.get(_OTHER) or self._board.add(self._process, _OTHER)
            assert at is not None, "the last place is kept for the others"
            self._models[_OTHER] = at
        else:
            self._models[model] = at
        return at

    def show(self, gauges: Mapping[str, float]) -> None:
        """Say what is so now: of each of `GAUGES` that is known, how many."""
        for index, name in enumerate(GAUGES):
            self._numbers[self._single + _GAUGES_AT + index] = gauges.get(name, 0)

    def text(self) -> bytes:
        """Return what all processes counted, in Prometheus' text format."""
        shared = self._board
        places: dict[str, list[int]] = {}
        for process in range(shared.slots):
            for model, at in shared.series(process):
                places.setdefault(model, []).append(at)
        models = [
            (f'model="{model.translate(_ESCAPED)}"', shared.sums(found, _SERIES))
            for model, found in sorted(places.items())
        ]
        singles = shared.sums(
            [shared.single(process) for process in range(shared.slots)], len(_KINDS) + len(GAUGES)
        )
        lines: list[str] = []
        name = _head(lines, "requests_total", "counter", "Answers that were charged, by outcome.")
        for label, one in models:
            for outcome, count in zip(_OUTCOMES, one, strict=False):
                lines.append(f'{name}{{{label},outcome="{outcome}"}} {count:.0f}')
        name = _head(lines, "tokens_total", "counter", "Tokens that were charged, by kind.")
        for label, one in models:
            for kind, count in zip(_TOKENS, one[_TOKENS_AT:], strict=False):
                lines.append(f'{name}{{{label},kind="{kind}"}} {count:.0f}')
        name = _head(lines, "first_token_seconds", "histogram", "Until a stream's first token.")
        for label, one in models:
            lines += _histogram(name, label, _FIRST_SECONDS, one[_FIRST_AT:])
        name = _head(
            lines, "token_seconds", "histogram", "Between two tokens, the mean of each stream."
        )
        for label, one in models:
            lines += _histogram(name, label, _EACH_SECONDS, one[_EACH_AT:])
        name = _head(lines, "refusals_total", "counter", "Requests that were refused, by code.")
        by_code: dict[str, float] = {}
        for refused, count in zip(_KINDS, singles, strict=False):
            code = TABLE[refused].code
            by_code[code] = by_code.get(code, 0) + count
        lines += [f'{name}{{code="{code}"}} {count:.0f}' for code, count in sorted(by_code.items())]
        for (gauge, about), value in zip(GAUGES.items(), singles[_GAUGES_AT:], strict=True):
            name = _head(lines, gauge, "gauge", about)
            lines.append(f"{name} {value:.0f}")
        return ("\n".join(lines) + "\n").encode() + self.bought.text()


def _head(lines: list[str], name: str, kind: str, about: str) -> str:
    full = f"sublet_gateway_{name}"
    lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}"]
    return full


def _histogram(
    name: str, labels: str, bounds: Sequence[float], numbers: Sequence[float]
) -> Iterable[str]:
    counts = list(accumulate(numbers[: len(bounds) + 1]))
    for bound, count in zip((*bounds, None), counts, strict=True):
        shown = "+Inf" if bound is None else f"{bound:g}"
        yield f'{name}_bucket{{{labels},le="{shown}"}} {count:.0f}'
    yield f"{name}_sum{{{labels}}} {numbers[len(bounds) + 1]:.6f}"
    yield f"{name}_count{{{labels}}} {counts[-1]:.0f}"
