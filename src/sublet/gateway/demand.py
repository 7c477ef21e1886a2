"""How much of each deployment is used here now, which is what its replicas are scaled by.

A request adds a few integers; once a second what changed is told.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sublet.models.scaling import Load

_LATELY_SECONDS: Final = 30.0
_FEWEST: Final = 5  # first tokens, before they say anything
_KEPT: Final = 512
_MOST_MODELS: Final = 10_000
_REPEAT_SECONDS: Final = 3.0  # what goes on is told again, so that it is not taken for dead


@dataclass(slots=True)
class _Use:
    requests: int = 0
    outstanding_tokens: int = 0
    asked_at: datetime | None = None
    # (when, how long it took) of the last first tokens, in seconds
    first: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    changed: bool = True
    told_at: float = float("-inf")

    def first_token_ms(self, now: float) -> int | None:
        while self.first and self.first[0][0] < now - _LATELY_SECONDS:
            self.first.popleft()
        if len(self.first) < _FEWEST:
            return None
        waits = sorted(wait for _, wait in self.first)
        return round(waits[len(waits) * 9 // 10] * 1000)


class Demand:
    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        # Of models that have no replicas of their own, whose serve them.
        self.served_by: Mapping[str, str] = {}

    def asked(self, model: str, *, at: datetime) -> None:
        """Note that somebody asked for a model that there is, whether it can answer or not."""
        use = self._of(self.served_by.get(model, model))
        use.asked_at = at
        use.changed = True

    def begin(self, model: str, tokens: int) -> None:
        use = self._of(model)
        use.requests += 1
        use.outstanding_tokens += tokens
        use.changed = True

    def end(self, model: str, tokens: int) -> None:
        use = self._of(model)
        use.requests -= 1
        use.outstanding_tokens -= tokens
        use.changed = True

    @contextmanager
    def runs(self, model: str, tokens: int) -> Iterator[None]:
        """Count a request while it runs, which needs so many tokens at most."""
        model = self.served_by.get(model, model)  # once: it may change meanwhile
        self.begin(model, tokens)
        try:
            yield
        finally:
            self.end(model, tokens)

    def first(self, model: str, began_at: float, at: float) -> None:
        """Note when a stream's first token came; 0: it had none."""
        if at:
            self._of(self.served_by.get(model, model)).first.append((at, at - began_at))

    def news(self, *, now: float) -> dict[str, Load]:
        """Return what changed since the last time, and now and then what did not."""
        told = {}
        for model, use in self._uses.items():
            goes_on = use.requests and now - use.told_at >= _REPEAT_SECONDS
            if use.changed or goes_on:
                use.changed, use.told_at = False, now
                told[model] = Load(
                    requests=use.requests,
                    outstanding_tokens=use.outstanding_tokens,
                    first_token_ms=use.first_token_ms(now),
                    asked_at=use.asked_at,
                )
        if len(self._uses) > _MOST_MODELS:
            self._uses = {model: use for model, use in self._uses.items() if use.requests}
        return told

    def _of(self, model: str) -> _Use:
        return self._uses.setdefault(model, _Use())
