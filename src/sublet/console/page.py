"""What the console consists of: pages and actions, each with whom it is for.

Navigation, the test of rights and the browser's tests are all made from the one table in
`contents.py`; a page that is not in it cannot be opened.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from sublet.tenants.person import Right

if TYPE_CHECKING:
    from sublet.console.visit import Visit

BASE: Final = "/console"


class For(StrEnum):
    """Whose a page is."""

    OPERATOR = "operator"  # people of the operator's, as themselves
    TENANT = "tenant"  # a tenant's people, and whoever acts for one
    BOTH = "both"
    ANYBODY = "anybody"  # also without a sign-in


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    path: str  # below /console, such as "/leases/{lease_id}"
    title: str
    audience: For
    show: Callable[["Visit"], Awaitable[Response]]
    needs: Right | None = None  # beyond being of the audience
    group: str | None = None  # its heading in the navigation; None: not in it
    walks: bool = True  # False: not a page to look at, but a stream, or a step on the way
    # For tests: which things there must be for it to be opened, such as {"lease_id": "lease"}.
    example: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A change that somebody can make: a POST, on record with what was before and after."""

    path: str
    name: str  # in the record of changes, such as "pool.policy"
    audience: For
    act: Callable[["Visit"], Awaitable[Response]]
    needs: Right | None = None
    secret: frozenset[str] = frozenset()  # fields of its form that are not to be kept
    recorded: bool = True  # False: it changes nothing that anybody else could see
    example: Mapping[str, str] = field(default_factory=dict)
