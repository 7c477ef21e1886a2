"""A small S3-compatible store: ListObjectsV2 by pages, ranges, If-Match; signatures checked by botocore.

It listens on loopback. What it says of signatures comes from AWS's own signer, not from ours.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ID, SECRET, REGION, BUCKET = "AKIAEXAMPLE", "not+a/secret", "eu-test-1", "weights"


@dataclass
class Store:
    objects: dict[str, bytes] = field(default_factory=dict)
    page: int = 1000
    asked: list[tuple[str, int]] = field(default_factory=list)  # (path, status)
    broken: int = 0  # so many answers to come are 503
    url: str = ""

    def etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.objects[key]).hexdigest()}"'  # noqa: S324 -- as S3 has it

    def answer(self, target: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        if self.broken:
            self.broken -= 1
            return 503, {}, b"<Error><Code>SlowDown</Code></Error>"
        if not self._signed(target, headers):
            return 403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if bucket != BUCKET:
            return 404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"
        if not key:
            return 200, {}, self._list({k: v[0] for k, v in parse_qs(parts.query).items()})
        if key not in self.objects:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        if headers.get("if-match") not in (None, self.etag(key)):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        content = self.objects[key]
        first, _, last = headers["range"].removeprefix("bytes=").partition("-")
        return 206, {"ETag": self.etag(key)}, content[int(first) : int(last) + 1]

    def _list(self, query: dict[str, str]) -> bytes:
        keys = sorted(k for k in self.objects if k.startswith(query.get("prefix", "")))
        start = int(query.get("continuation-token", "0"))
        shown = keys[start : start + self.page]
        more = start + self.page < len(keys)
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.objects[k])}</Size>"
            f"<ETag>{escape(self.etag(k), {chr(34): '&quot;'})}</ETag></Contents>"
            for k in shown
        )
        token = (
            f"<NextContinuationToken>{start + self.page}</NextContinuationToken>" if more else ""
        )
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        ).encode()

    def _signed(self, target: str, headers: dict[str, str]) -> bool:
        shown = headers.get("authorization", "")
        names = shown.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        if not {"host", "x-amz-date", "x-amz-content-sha256"} <= {*names}:
            return False
        request = AWSRequest("GET", f"{self.url}{target}", {n: headers[n] for n in names})
        request.context["timestamp"] = headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials(ID, SECRET), "s3", REGION)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        return shown.endswith(f"Signature={signer.signature(text, request)}")


@contextmanager
def store() -> Iterator[Store]:
    ours = Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more, body = ours.answer(self.path, headers)
            ours.asked.append((self.path, status))
            self.send_response(status)
            for name, value in (more | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ours.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield ours
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
