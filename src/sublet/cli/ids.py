"""Ids as people write them: whole, or as a beginning that only one thing has."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sublet.cli.failure import Failure

if TYPE_CHECKING:
    from sublet.cli.client import Client

_SHORTEST: Final = 4
_PAGE: Final = 1000  # the most that the API gives


def lease_id(api: "Client", given: str) -> str:
    return whole_id(given, lambda: _leases(api), noun="lease")


def job_id(api: "Client", given: str) -> str:
    return whole_id(given, lambda: _ids(api.items("/v1/internal-jobs")), noun="internal job")


def whole_id(given: str, known: Callable[[], Iterable[str]], *, noun: str) -> str:
    """Return the id that `given` is, or the only one of `known` that begins with it.

    Raises:
        Failure: none does, or more than one, or it is too short to say.
    """
    try:
        return str(UUID(given))
    except ValueError:
        pass
    if len(given) < _SHORTEST:
        raise Failure(f"write at least {_SHORTEST} characters of the {noun}'s id, not {given!r}")
    found = sorted({id_ for id_ in known() if id_.startswith(given.lower())})
    match found:
        case [only]:
            return only
        case []:
            raise Failure(f"no {noun} that you can see has an id beginning with {given!r}")
        case _:
            raise Failure(f"{len(found)} {noun}s begin with {given!r}; write more of the id")


def _leases(api: "Client") -> Iterator[str]:
    before = None
    while page := api.items("/v1/leases", limit=_PAGE, before=before):
        yield from _ids(page)
        if len(page) < _PAGE:
            return
        before = page[-1]["requested_at"]


def _ids(items: Iterable[dict[str, Any]]) -> Iterator[str]:
    return (str(item["id"]) for item in items)
