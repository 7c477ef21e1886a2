"""What an auditor reports: how much it counted, and every difference, by law."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that the records say and the rules forbid."""

    law: str  # the law's name in docs/glossary.md, such as "money"
    what: str  # one plain sentence with the ids needed to look it up


@dataclass(slots=True)
class Findings:
    """Grows while the rooms' audits run; then it is printed."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # law → what → how many
    differences: list[Difference] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # worth keeping: the head of the seals

    def count(self, law: str, what: str, number: int) -> None:
        of_law = self.counts.setdefault(law, {})
        of_law[what] = of_law.get(what, 0) + number

    def check(self, ok: bool, law: str, what: str) -> None:
        """Note `what` as a difference unless `ok`."""
        self.counts.setdefault(law, {})
        if not ok:
            self.differences.append(Difference(law=law, what=what))

    def add(self, other: "Findings") -> None:
        """Take over what another one found."""
        for law, counts in other.counts.items():
            self.counts.setdefault(law, {})
            for what, number in counts.items():
                self.count(law, what, number)
        self.differences += other.differences
        self.notes |= other.notes


class Progress:
    """How far an audit is: some steps, each with its share of the work."""

    def __init__(self, tell: Callable[[str, float], None] = lambda _what, _done: None) -> None:
        self._tell = tell  # what is looked at now, and how much work is done
        self._what = ""
        self._done = self._weight = 0.0

    def begin(self, what: str, *, weight: float) -> None:
        """Go on to `what`: the step before it is done."""
        self._done += self._weight
        self._what, self._weight = what, weight
        self._tell(what, self._done)

    def reach(self, share: float) -> None:
        """Say how much of the present step is done, from 0 to 1."""
        self._tell(self._what, self._done + self._weight * min(share, 1.0))

    def end(self) -> float:
        """Say that the last step is done; return how much work all of them were."""
        self.begin(self._what, weight=0)
        return self._done


def new_seed() -> int:
    """Return a seed for fingerprints that nobody who wrote a record can have known.

    Two sets of millions of records are compared without joining them: each record is hashed
    with the seed to a number of 64 bits that its amount is multiplied with, and all is added
    up. Equal sets give equal sums; others do with a chance of one in 10^19. Only where the sums
    differ are the sets joined, to name what is wrong.

    Source: Freivalds' check and its kin; see Motwani and Raghavan, Randomized Algorithms, ch. 7.
    """
    return secrets.randbits(62)
