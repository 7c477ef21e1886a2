"""What is counted of purchases for Prometheus, all processes of a gateway together (`board.py`)."""

from typing import Final

from sublet.gateway.board import Board
from sublet.suppliers.choice import No
from sublet.suppliers.purchase import Purchase
from sublet.suppliers.usage import KINDS

_OUTCOMES: Final = ("completed", "aborted", "failed")
_NOS: Final = tuple(No)
_NO_AT: Final = {no: index for index, no in enumerate(_NOS)}
_TOKENS_AT: Final = len(_OUTCOMES)
_NANOS_AT: Final = _TOKENS_AT + len(KINDS)
_SERIES: Final = _NANOS_AT + 1
_MOST: Final = 200  # suppliers
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def board(processes: int) -> Board:
    """Return the memory in which so many processes count: made before they are forked."""
    return Board(processes, single=len(_NOS) + 1, each=_SERIES, most=_MOST)


class BoughtMetrics:
    def __init__(self, shared: Board | None = None, process: int = 0) -> None:
        self._board = board(1) if shared is None else shared
        self._process = process
        self._places = dict(self._board.series(process))

    def not_bought(self, no: No, count: int = 1) -> None:
        self._board.numbers[self._board.single(self._process) + _NO_AT[no]] += count

    def market_read(self) -> None:
        self._board.numbers[self._board.single(self._process) + len(_NOS)] += 1

    def bought(self, purchase: Purchase) -> None:
        at = self._places.get(purchase.supplier)
        if at is None:
            at = self._board.add(self._process, purchase.supplier)
            if at is None:
                return  # there is no place for so many
            self._places[purchase.supplier] = at
        numbers = self._board.numbers
        numbers[at + _OUTCOMES.index(purchase.outcome)] += 1
        for index, (_, quantity) in enumerate(purchase.used.quantities()):
            numbers[at + _TOKENS_AT + index] += quantity
        numbers[at + _NANOS_AT] += purchase.amount_nanos

    def text(self) -> bytes:
        """Return what all processes counted, in Prometheus' text format."""
        shared = self._board
        places: dict[str, list[int]] = {}
        for process in range(shared.slots):
            for supplier, at in shared.series(process):
                places.setdefault(supplier, []).append(at)
        found = [
            (f'supplier="{supplier.translate(_ESCAPED)}"', shared.sums(at, _SERIES))
            for supplier, at in sorted(places.items())
        ]
        lines = [
            "# HELP sublet_gateway_purchases_total Answers bought from suppliers, by outcome.",
            "# TYPE sublet_gateway_purchases_total counter",
        ]
        for label, sums in found:
            for outcome, count in zip(_OUTCOMES, sums, strict=False):
                lines.append(
                    f'sublet_gateway_purchases_total{{{label},outcome="{outcome}"}} {count:.0f}'
                )
        lines += [
            "# HELP sublet_gateway_purchased_tokens_total Tokens bought, by kind.",
            "# TYPE sublet_gateway_purchased_tokens_total counter",
        ]
        for label, sums in found:
            for kind, count in zip(KINDS, sums[_TOKENS_AT:], strict=False):
                lines.append(
                    f'sublet_gateway_purchased_tokens_total{{{label},kind="{kind}"}} {count:.0f}'
                )
        lines += [
            "# HELP sublet_gateway_purchase_cost_nanos_total What they cost, in nanos.",
            "# TYPE sublet_gateway_purchase_cost_nanos_total counter",
        ]
        lines += [
            f"sublet_gateway_purchase_cost_nanos_total{{{label}}} {sums[_NANOS_AT]:.0f}"
            for label, sums in found
        ]
        lines += [
            "# HELP sublet_gateway_not_bought_total Suppliers that were passed over, by reason.",
            "# TYPE sublet_gateway_not_bought_total counter",
        ]
        singles = shared.sums([shared.single(one) for one in range(shared.slots)], len(_NOS) + 1)
        lines += [
            f'sublet_gateway_not_bought_total{{reason="{no.value}"}} {count:.0f}'
            for no, count in zip(_NOS, singles, strict=False)
        ]
        lines += [
            "# HELP sublet_gateway_market_reads_total How often it was read what may be bought.",
            "# TYPE sublet_gateway_market_reads_total counter",
            f"sublet_gateway_market_reads_total {singles[-1]:.0f}",
        ]
        return ("\n".join(lines) + "\n").encode()
