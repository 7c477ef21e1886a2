"""What a gateway counts for Prometheus. All of it is preallocated: a request adds a few integers.

Prompts and answers are nowhere in it; its labels are models, outcomes and codes.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sublet.gateway.failures import TABLE, Kind
from sublet.gateway.tariff import Counts
from sublet.metering.usage import Outcome

_FIRST_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_EACH_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MOST_MODELS: Final = 1000  # more names than that are counted as "other"
_TOKENS: Final = ("input", "cache_read", "cache_write", "output", "reasoning")
_OUTCOMES: Final = tuple(Outcome)
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(slots=True)
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)  # one more than bounds: above the last
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            total += count
            shown = "+Inf" if bound is None else f"{bound:g}"
            yield f'{name}_bucket{{{labels},le="{shown}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum:.6f}"
        yield f"{name}_count{{{labels}}} {total}"


class _Model:
    __slots__ = ("each", "first", "outcomes", "tokens")

    def __init__(self) -> None:
        self.outcomes = [0] * len(_OUTCOMES)
        self.tokens = [0] * len(_TOKENS)
        self.first = Histogram(_FIRST_SECONDS)
        self.each = Histogram(_EACH_SECONDS)


_AT: Final = {outcome: index for index, outcome in enumerate(_OUTCOMES)}


class Metrics:
    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self._refusals: dict[Kind, int] = dict.fromkeys(Kind, 0)

    def refused(self, kind: Kind) -> None:
        self._refusals[kind] += 1

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
        one = self._models.get(model)
        if one is None:
            if len(self._models) >= _MOST_MODELS:
                model = "other"
            one = self._models.setdefault(model, _Model())
        one.outcomes[_AT[outcome]] += 1
        tokens = one.tokens
        tokens[0] += counts.input_tokens
        tokens[1] += counts.cache_read_tokens
        tokens[2] += counts.cache_write_tokens
        tokens[3] += counts.output_tokens
        tokens[4] += counts.reasoning_tokens
        if first_seconds is not None:
            one.first.add(first_seconds)
            if (more := counts.completion_tokens - 1) > 0:
                one.each.add(rest_seconds / more)

    def text(self, gauges: dict[str, tuple[str, int]]) -> bytes:
        """Return it in Prometheus' text format.

        Args:
            gauges: {name: (what it is, how many now)}.
        """
        lines: list[str] = []
        models = sorted(
            (f'model="{name.translate(_ESCAPED)}"', one) for name, one in self._models.items()
        )
        name = _head(lines, "requests_total", "counter", "Answers that were charged, by outcome.")
        for label, one in models:
            for outcome, count in zip(_OUTCOMES, one.outcomes, strict=True):
                lines.append(f'{name}{{{label},outcome="{outcome}"}} {count}')
        name = _head(lines, "tokens_total", "counter", "Tokens that were charged, by kind.")
        for label, one in models:
            for kind, count in zip(_TOKENS, one.tokens, strict=True):
                lines.append(f'{name}{{{label},kind="{kind}"}} {count}')
        name = _head(lines, "first_token_seconds", "histogram", "Until a stream's first token.")
        for label, one in models:
            lines += one.first.lines(name, label)
        name = _head(
            lines, "token_seconds", "histogram", "Between two tokens, the mean of each stream."
        )
        for label, one in models:
            lines += one.each.lines(name, label)
        name = _head(lines, "refusals_total", "counter", "Requests that were refused, by code.")
        by_code: dict[str, int] = {}
        for refused, count in self._refusals.items():
            code = TABLE[refused].code
            by_code[code] = by_code.get(code, 0) + count
        lines += [f'{name}{{code="{code}"}} {count}' for code, count in sorted(by_code.items())]
        for gauge, (about, value) in gauges.items():
            name = _head(lines, gauge, "gauge", about)
            lines.append(f"{name} {value}")
        return ("\n".join(lines) + "\n").encode()


def _head(lines: list[str], name: str, kind: str, about: str) -> str:
    full = f"sublet_gateway_{name}"
    lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}"]
    return full
