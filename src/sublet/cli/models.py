"""`sublet model …`: hosted models, and a word with one of them."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from sublet.cli import catalogue
from sublet.cli.catalogue import Name
from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import ExitCode, Failure
from sublet.cli.instance import Instance
from sublet.cli.output import Column, Document, print_json, yes_no

if TYPE_CHECKING:
    from sublet.cli.client import Client

DEPLOYMENT = (
    Column("model", "name"),
    Column("state", "state"),
    Column("wanted", "wanted", yes_no),
    Column("context", "context_tokens", right=True),
    Column("recipe", "recipe"),
    Column("detail", "detail"),
)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Hosted models, billed by the token.",
        examples=("sublet model list", 'sublet model chat gemma-3-270m "Once upon a time"'),
    )
    root.add_typer(group, name="model")
    catalogue.add_group(root)
    command(
        group, "list", examples=("sublet model list", "sublet model list --json")
    )(list_all)  # fmt: skip
    command(group, "start", examples=("sublet model start gemma-3-270m",))(start)
    command(group, "stop", examples=("sublet model stop gemma-3-270m",))(stop)
    command(
        group, "chat",
        examples=(
            'sublet model chat gemma-3-270m "Once upon a time" --max-tokens 64',
            "sublet model chat gemma-3-270m - < prompt.txt",
        ),
    )(chat)  # fmt: skip
    catalogue.add_to(group)


def list_all(session: Session) -> None:
    """List deployments, their state, and why one is not ready."""
    with session.operator() as api:
        document = api.get("/v1/deployments")
    session.show_items(document, DEPLOYMENT)


def start(session: Session, name: Name) -> None:
    """Host a model: a replica is leased for it as soon as there is room."""
    _want(session, name, wanted=True)


def stop(session: Session, name: Name) -> None:
    """Host a model no longer; requests under way are finished."""
    _want(session, name, wanted=False)


def chat(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="`sublet model list` shows them.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say; - reads stdin.")],
    *,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many.")
    ] = None,
) -> None:
    """Ask a model, through the gateway, and print its answer as it comes."""
    from sublet.cli.client import Client  # noqa: PLC0415 -- slow to load

    said = sys.stdin.read() if text == "-" else text
    body: Document = {"model": model, "messages": [{"role": "user", "content": said}]}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    with session.tenant() as api:
        gateway = _gateway(api)
    with Client(gateway) as api:
        if session.json:
            print_json(api.post_slow("/v1/chat/completions", body))
            return
        with api.stream("POST", "/v1/chat/completions", body={**body, "stream": True}) as answer:
            for piece in pieces(answer.iter_lines()):
                print(piece, end="", flush=True)
    print()


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """Return the text in a stream of server-sent events, piece by piece.

    Raises:
        Failure: the stream says that something failed, or ends before its own end.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise Failure("the gateway sent an event that is not JSON") from None
        if error := event.get("error"):
            raise Failure(str(error.get("message") if isinstance(error, dict) else error))
        for choice in event.get("choices") or []:
            if content := (choice.get("delta") or {}).get("content"):
                yield content
    raise Failure("the answer broke off", ExitCode.UNREACHABLE)


def _want(session: Session, name: str, *, wanted: bool) -> None:
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    with session.operator() as api:
        document = api.patch(f"/v1/deployments/{part(name)}", {"wanted": wanted})
    session.show(document, DEPLOYMENT)


def _gateway(api: "Client") -> Instance:
    """Return where the gateway is. Plain http carries a key on this machine only."""
    api_at = api.instance
    http, https, ca_file = api_at.gateway_http_url, api_at.gateway_url, api_at.ca_file
    if not (http or https):
        status = api.get("/v1/status")
        http, https = status.get("gateway_http_url"), status.get("gateway_url")
        theirs = status.get("ca_file")
        if ca_file is None and theirs and Path(theirs).is_file():
            ca_file = theirs
    local = urlsplit(api_at.api_url).hostname in _LOOPBACK
    if (url := (http if local and http else https)) is None:
        raise Failure("this instance names no gateway")
    return Instance(api_url=url, key=api_at.key, ca_file=ca_file, here=api_at.here)
