import socket

import pytest

from sublet.core.errors import Misconfigured
from sublet.core.net import free_port, listen


def test_a_free_port_is_none_that_connections_are_given() -> None:
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40, "each time another one: two that choose at once must not meet"
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        assert max(ports) < given.getsockname()[1]


def test_a_taken_port_says_so_and_is_not_offered() -> None:
    with listen("127.0.0.1", free_port()) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            Misconfigured, match=f"cannot listen on 127.0.0.1:{port}: .*another port"
        ):
            listen("127.0.0.1", port)
