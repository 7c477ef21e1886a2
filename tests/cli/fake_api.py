"""A small real HTTP server that answers as it is told, and the command run against it."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from sublet.cli.root import run

Document = dict[str, Any]
OPERATOR = "sk-operator"
TENANT = "sk-tenant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    method: str
    path: str
    query: dict[str, str]
    key: str
    body: Any
    named: str | None = None  # by its Idempotency-Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int = 200
    body: bytes = b""
    broken: bool = False  # promise one byte more than comes


def as_json(document: object, status: int = 200) -> Answer:
    return Answer(status=status, body=json.dumps(document).encode())


def error(message: str, *, status: int = 409, retryable: bool = False) -> Answer:
    return as_json(
        {"error": {"code": "refused", "message": message, "retryable": retryable}}, status
    )


@dataclass(slots=True)
class FakeApi:
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def on(self, call: str, *answers: Answer | Document) -> None:
        """Answer `call`, such as "GET /v1/status", in turn; the last answer again and again."""
        self.answers[call] = [a if isinstance(a, Answer) else as_json(a) for a in answers]

    def answer(self, seen: Seen) -> Answer:
        self.seen.append(seen)
        left = self.answers.get(f"{seen.method} {seen.path}")
        if not left:
            return error("there is no such thing", status=404)
        return left.pop(0) if len(left) > 1 else left[0]

    def calls(self) -> list[str]:
        return [f"{seen.method} {seen.path}" for seen in self.seen]


def serve(api: FakeApi) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(size)
            address = urlsplit(self.path)
            answer = api.answer(
                Seen(
                    method=self.command,
                    path=address.path,
                    query=dict(parse_qsl(address.query)),
                    key=str(self.headers.get("Authorization")).removeprefix("Bearer "),
                    body=json.loads(text) if text else None,
                    named=self.headers.get("Idempotency-Key"),
                )
            )
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body) + answer.broken))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = answer.broken

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    return server


def write_ready(folder: Path, api_url: str, **more: object) -> None:
    ready = {
        "api_url": api_url,
        "gateway_http_url": api_url,
        "operator_key": OPERATOR,
        "tenant": "demo",
        "tenant_key": TENANT,
        "pid": 1,
        **more,
    }
    (folder / "ready.json").write_text(json.dumps(ready), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed_with(self, code: int, message: str) -> bool:
        """Was `message` all it said, on one line of stderr?"""
        return (self.code, self.out, self.err) == (code, "", f"sublet: {message}\n")


Sublet = Callable[..., Result]


def runner(capsys: pytest.CaptureFixture[str]) -> Sublet:
    def sublet(*arguments: str) -> Result:
        capsys.readouterr()
        code = run(list(arguments))
        out, err = capsys.readouterr()
        return Result(code=code, out=out, err=err)

    return sublet
