"""Connecting to an interactive lease: this program's input and output, or a local port."""

import contextlib
import http.client
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Callable

import httpx

from sublet.cli.client import Client, refusal
from sublet.cli.failure import ExitCode, Failure
from sublet.engine.tunnel import PIECE, Tunnel, end, join

_PATIENCE_SECONDS = 30.0


def dial(api: Client, lease: str) -> Tunnel:
    """Connect to a lease.

    Raises:
        Failure: it may not be connected to, or nobody is there.
    """
    url = f"{api.instance.api_url}/v1/leases/{lease}/connect"
    headers = {"Authorization": f"Bearer {api.instance.key}"}
    try:
        tunnel = Tunnel(url, headers, patience_seconds=_PATIENCE_SECONDS)
        answer = tunnel.answer()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"no connection to {lease}: {error}", ExitCode.UNREACHABLE) from None
    if answer.status == http.client.OK:
        return tunnel
    request = httpx.Request("POST", url)
    raise refusal(httpx.Response(answer.status, content=answer.read(), request=request))


def pipe(tunnel: Tunnel) -> None:
    """Join a connection to our own input and output, until the far side ends, or nobody is here."""

    def read() -> bytes:
        data = os.read(0, PIECE)
        if not data:
            # Nothing more is said, and something may still be heard: until nobody listens either,
            # such as an ssh that was refused. It sends SIGHUP, which not everybody heeds.
            listener = select.poll()
            listener.register(1, 0)  # errors and hang-ups alone
            listener.poll()
            tunnel.hang_up()
        return data

    with contextlib.closing(tunnel):
        join(tunnel, read, _write)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def forward(port: int, connect: Callable[[], Tunnel], *, json_line: bool) -> None:
    """Listen on a port of this machine, and join whoever comes to a connection of its own."""
    try:
        listener = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise Failure(f"port {port} cannot be listened on: {error}", ExitCode.FAILED) from None
    with listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(json.dumps({"address": address}) if json_line else address, flush=True)
        while True:
            here, _ = listener.accept()
            threading.Thread(target=_forward, args=(here, connect), daemon=True).start()


def _forward(here: socket.socket, connect: Callable[[], Tunnel]) -> None:
    with here:
        try:
            tunnel = connect()
        except Failure as failure:
            print(f"sublet: {failure}", file=sys.stderr)
            return

        def read() -> bytes:
            data = here.recv(PIECE)
            if not data:
                tunnel.hang_up()
            return data

        with contextlib.closing(tunnel):
            join(tunnel, read, here.sendall)
        end(here)
