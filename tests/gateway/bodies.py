"""What may be sent as a body, and how every dialect must take it."""

import json
from collections.abc import Callable

from hypothesis import strategies as st

from sublet.gateway.ask import Ask
from sublet.gateway.dialect import Dialect
from sublet.gateway.failures import Failure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def understood(read: Callable[[bytes], Ask], value: object, *, dialect: Dialect) -> bool:
    """Say whether a body is taken; when it is not, it is refused in good form."""
    failure = None
    try:
        assert read(json.dumps(value).encode()).messages >= 1
    except Failure as refused:
        failure = refused
    if failure is not None:
        status, body, _ = dialect.refuse(failure, "req_1")
        assert status == 400
        assert json.loads(body)["error"]["message"]
    return failure is None
