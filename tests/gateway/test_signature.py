"""Signature Version 4 as boto3's own signer makes it, and as nobody should."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from sublet.gateway.failures import Failure, Kind
from sublet.gateway.signature import (
    ALGORITHM,
    SKEW,
    Header,
    Rejected,
    Seen,
    Signed,
    check_time,
    read,
    verify,
)

ID, SECRET = "SLAKEXAMPLE", "not/a+real=secret"
HEADERS = {"content-type": "application/json", "x-amzn-bedrock-accept": "  a   b "}
SEGMENTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
    | st.sampled_from(["..", ".", "us.model:0", "arn:aws:bedrock:r::foundation-model/m"]),
    max_size=5,
)
PAIRS = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4)


def signed(
    method: str = "POST",
    url: str = "https://host:7443/model/m%3A0/converse",
    body: bytes = b"{}",
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a request as the wire brings it, signed by botocore."""
    request = AWSRequest(method=method, url=url, data=body, headers=headers or HEADERS)
    SigV4Auth(Credentials(ID, SECRET), "bedrock", "us-east-1").add_auth(request)
    parts = urlsplit(url)
    lines = [
        (name.lower().encode(), str(value).encode()) for name, value in request.headers.items()
    ]
    return {
        "method": method,
        "target": parts.path.encode() + (b"?" + parts.query.encode() if parts.query else b""),
        "headers": [(b"host", parts.netloc.encode()), *lines],
        "body": body,
    }


def opened(request: dict[str, Any]) -> Signed:
    headers: list[Header] = request["headers"]
    return read(dict(headers)[b"authorization"].decode(), headers)


def check(request: dict[str, Any], *, secret: str = SECRET) -> None:
    verify(opened(request), secret=secret, **request)


def other(request: dict[str, Any], name: bytes, value: bytes | None) -> dict[str, Any]:
    """Return it with one header changed, or without it."""
    kept = [(key, was) for key, was in request["headers"] if key != name]
    return request | {"headers": kept if value is None else [*kept, (name, value)]}


@given(st.sampled_from(["GET", "POST", "DELETE"]), SEGMENTS, PAIRS, st.binary(max_size=64))
def test_what_boto3_signs_is_taken(
    method: str, segments: list[str], pairs: list[tuple[str, str]], body: bytes
) -> None:
    path = "/" + "/".join(quote(segment, safe="") for segment in segments)
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
    check(signed(method, f"https://host:7443{path}{'?' if query else ''}{query}", body))


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request | {"body": b"{ }"},
        lambda request: request | {"method": "PUT"},
        lambda request: request | {"target": b"/model/m%3A1/converse"},
        lambda request: request | {"target": request["target"] + b"?a=1"},
        lambda request: other(request, b"content-type", b"text/plain"),
        lambda request: other(request, b"host", b"elsewhere:7443"),
        lambda request: other(request, b"x-amzn-bedrock-accept", None),
        lambda request: other(request, b"x-amz-content-sha256", b"0" * 64),
        lambda request: other(request, b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"),
        lambda request: other(request, b"x-amz-date", b"20260131T120000Z"),
        lambda request: other(request, b"x-amz-target", b"not signed"),
        lambda request: other(request, b"x-amz-security-token", b"token"),
    ],
)
def test_what_was_changed_on_its_way_is_refused(change: Any) -> None:
    request = signed()
    check(request)
    with pytest.raises(Rejected) as refused:
        check(change(request))
    assert refused.value.aws_status == 403


def test_another_secret_is_refused() -> None:
    with pytest.raises(Rejected, match="does not match") as refused:
        check(signed(), secret=SECRET + "x")
    assert refused.value.aws_code == "InvalidSignatureException"


@pytest.mark.parametrize("seconds", [-301, 301, -86_400, 10**9])
def test_a_clock_that_is_off_is_refused(seconds: int) -> None:
    found = opened(signed())
    with pytest.raises(Rejected, match=r"Signature (expired|not yet current)") as refused:
        check_time(found, now=found.at + timedelta(seconds=seconds))
    assert refused.value.aws_code == "InvalidSignatureException"


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_five_minutes_either_way_are_near_enough(seconds: int) -> None:
    found = opened(signed())
    check_time(found, now=found.at + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    "authorization",
    [
        ALGORITHM,
        f"{ALGORITHM} Credential=a",
        f"{ALGORITHM} Credential=a/b/c/d/aws4_request, SignedHeaders=host, Signature=00",
        f"{ALGORITHM} Credential=i/20260131/r/bedrock/aws4_request, SignedHeaders=Host, Signature=0",
    ],
)
def test_half_a_signature_is_refused_as_such(authorization: str) -> None:
    with pytest.raises(Rejected) as refused:
        read(authorization, [(b"x-amz-date", b"20260131T000000Z"), (b"host", b"h")])
    assert refused.value.aws_code in {"IncompleteSignatureException", "InvalidSignatureException"}


def test_one_for_another_service_is_refused() -> None:
    request = AWSRequest(method="GET", url="https://host/", headers={})
    SigV4Auth(Credentials(ID, SECRET), "s3", "us-east-1").add_auth(request)
    headers = [(name.lower().encode(), str(v).encode()) for name, v in request.headers.items()]
    with pytest.raises(Rejected, match="scoped to the service"):
        read(request.headers["Authorization"], headers)


@given(
    st.text(),
    st.lists(st.tuples(st.sampled_from([b"x-amz-date", b"host", b"x"]), st.binary(max_size=20))),
)
def test_nonsense_is_refused_and_never_breaks_the_reader(
    text: str, headers: list[tuple[bytes, bytes]]
) -> None:
    with pytest.raises(Rejected):
        read(ALGORITHM + text, headers)


@given(st.binary(), st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9))))
def test_whatever_is_signed_wrongly_is_refused_and_never_breaks_the_check(
    target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    request = signed()
    with pytest.raises(Rejected):
        check(request | {"target": target, "headers": request["headers"] + headers})


def test_a_signature_is_good_once_and_remembered_as_long_as_it_could_be_used() -> None:
    seen, found = Seen(), opened(signed())
    now = found.at - SKEW  # signed by a clock that is ahead
    seen.take(found, now=now)
    for later in (timedelta(0), SKEW, 2 * SKEW - timedelta(seconds=1)):
        with pytest.raises(Failure) as refused:
            seen.take(found, now=now + later)
        assert refused.value.kind is Kind.REPLAYED
    seen.take(replace(found, signature="1" * 64), now=now + 2 * SKEW)
    assert len(seen) == 1  # the first is forgotten, and too old by now
    with pytest.raises(Rejected):
        check_time(found, now=now + 2 * SKEW + timedelta(seconds=1))


def test_dates_are_read_as_utc() -> None:
    request = signed()
    date = dict(request["headers"])[b"x-amz-date"].decode()
    assert opened(request).at == datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
