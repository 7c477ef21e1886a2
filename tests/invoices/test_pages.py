"""PDF invoices as pictures of their pages, beside those that people looked at and found good.

After a change of the template, draw them anew and look at each: python -m tests.invoices.test_pages
"""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np
import pypdfium2
import pytest
from tests.invoices.documents import CREDIT, GPUS, TOKENS, a_document
from tests.invoices.pictures import Picture, read_png, write_png

from sublet.core.money import NANOS
from sublet.invoices.document import as_pdf
from sublet.invoices.invoice import Kind, State

PAGES: Final = Path(__file__).parent / "pages"
LARGE = replace(GPUS, quantity=3_600 * 23_456, amount_nanos=58_640 * NANOS)
MANY = [replace(TOKENS, key=f"number {n}", tags='{"team": "search"}') for n in range(40)]
DOCUMENTS: Final[Mapping[str, dict[str, Any]]] = {
    "usual": a_document(TOKENS, GPUS, CREDIT, LARGE, currency="EUR", unit_nanos=920_000_000),
    "paid": a_document(GPUS, tax=None, state=State.PAID, tax_id="", address=""),
    "two-pages": a_document(*MANY, GPUS, prepaid=600 * NANOS),
    "credit-note": a_document(
        replace(CREDIT, what="correction", note="of INV-000012: slow on 3 October"),
        kind=Kind.CREDIT_NOTE, state=State.PAID,
    ),
    "void": a_document(GPUS, state=State.VOID),
}  # fmt: skip


def drawn(document: dict[str, Any]) -> Picture:
    """Return its pages below each other, at 72 pixels an inch."""
    pages = []
    for page in pypdfium2.PdfDocument(as_pdf(document)):
        picture = page.render(scale=1.0, grayscale=True).to_numpy()
        pages.append(picture.reshape(ceil(page.get_height()), ceil(page.get_width())))
    return np.vstack(pages)


def apart(one: Picture, other: Picture) -> int:
    """Return how many pixels clearly differ; another machine may blend edges a little otherwise."""
    assert one.shape == other.shape, "another size, or another number of pages"
    return int((np.abs(one.astype(int) - other.astype(int)) > 80).sum())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_an_invoice_looks_as_it_was_found_good(name: str) -> None:
    assert apart(drawn(DOCUMENTS[name]), read_png(PAGES / f"{name}.png")) <= 3


def test_a_single_other_digit_would_be_seen() -> None:
    other = a_document(replace(GPUS, amount_nanos=GPUS.amount_nanos + 1), state=State.VOID)
    assert apart(drawn(other), read_png(PAGES / "void.png")) > 3


def test_every_picture_is_of_a_document() -> None:
    assert {path.stem for path in PAGES.iterdir()} == set(DOCUMENTS)


if __name__ == "__main__":
    for name, document in DOCUMENTS.items():
        write_png(PAGES / f"{name}.png", drawn(document))
