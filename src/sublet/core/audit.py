"""What an auditor reports: how much it counted, and every difference, by law."""

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
