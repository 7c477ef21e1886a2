"""Whatever is thrown at it: a clear 4xx, and nothing lost."""

import json
import socket
import time
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from tests.e2e.instance import MODEL, Instance, until

pytestmark = pytest.mark.e2e

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
BAD_CHATS: dict[str, bytes] = {
    "not json": b"{",
    "not an object": b"[]",
    "empty": b"",
    "nan": b'{"model":"gemma-3-270m","messages":[{"role":"user","content":"hi"}],"temperature":NaN}',
    "infinite": b'{"model":"gemma-3-270m","messages":[{"role":"user","content":"hi"}],"temperature":1e999}',
    "huge number": b'{"model":"gemma-3-270m","messages":[{"role":"user","content":"hi"}],"max_tokens":1'
    + b"0" * 400
    + b"}",
    "negative": json.dumps(CHAT | {"max_tokens": -1}).encode(),
    "zero": json.dumps(CHAT | {"max_tokens": 0}).encode(),
    "a text for a number": json.dumps(CHAT | {"max_tokens": "many"}).encode(),
    "an unknown field": json.dumps(CHAT | {"max_tokns": 5}).encode(),
    "no messages": json.dumps(CHAT | {"messages": []}).encode(),
    "wrong messages": json.dumps(CHAT | {"messages": "hi"}).encode(),
    "an unknown role": json.dumps(CHAT | {"messages": [{"role": "god", "content": "x"}]}).encode(),
    "no model": json.dumps({"messages": CHAT["messages"]}).encode(),
    "nul in the model": json.dumps(CHAT | {"model": "a\x00b"}).encode(),
    "half a character": b'{"model":"gemma-3-270m","messages":[{"role":"user","content":"\\ud800"}]}',
    "not utf-8": b'{"model":"gemma-3-270m","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "two answers": json.dumps(CHAT | {"n": 2}).encode(),
    "deep": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
BAD_LEASES: dict[str, object] = {
    "no command": {},
    "an empty command": {"command": []},
    "a text for a command": {"command": "sleep 1"},
    "nul": {"command": ["echo", "a\x00b"]},
    "nothing to run": {"command": [""]},
    "no gpus": {"command": ["true"], "gpus": 0},
    "minus one gpu": {"command": ["true"], "gpus": -1},
    "a huge number": {"command": ["true"], "gpus": 10**40},
    "half a gpu": {"command": ["true"], "gpus": 0.5},
    "a text for a number": {"command": ["true"], "gpus": "1"},
    "an unknown field": {"command": ["true"], "gpu": 1},
    "an unknown tier": {"command": ["true"], "tier": "gold"},
    "an unknown pool": {"command": ["true"], "pool": "h900"},
    "no time": {"command": ["true"], "max_seconds": 0},
    "too long": {"command": ["true"], "max_seconds": 10**9},
    "a bad variable": {"command": ["true"], "environment": {"A=B": "c"}},
    "no base64": {"command": ["true"], "files": {"a": "%%%"}},
    "a path out of it": {"command": ["true"], "files": {"../../etc/passwd": "aGk="}},
    "an absolute path": {"command": ["true"], "files": {"/etc/passwd": "aGk="}},
    "no id": {"command": ["true"], "id": "seven"},
}
BAD_AMOUNTS = [
    "NaN", "Infinity", "-1", "0", "1e400", "0.0000000001", "ten", "", " ", "\uff11\uff10", "1_0", "\x00", 5,
    None, 10**50, "9" * 200,
]  # fmt: skip
BAD_NAMES = ["", " ", "a\x00b", "\ud800", "a" * 101, "\n", "\u200b", 7, None]


def is_clear(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    error = answer.json()["error"]
    assert error["code"]
    assert len(error["message"]) > 5


@pytest.mark.parametrize("name", BAD_CHATS)
def test_bad_chats(instance: Instance, name: str) -> None:
    answer = httpx.post(
        instance.ready["gateway_http_url"] + "/v1/chat/completions",
        content=BAD_CHATS[name],
        headers={"Authorization": f"Bearer {instance.ready['tenant_key']}"},
    )
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("name", BAD_LEASES)
def test_bad_leases(instance: Instance, name: str) -> None:
    made = instance.api("POST", "/v1/leases", BAD_LEASES[name], key=instance.ready["tenant_key"])
    if made.status_code == 201:  # it can only be known bad by trying to run it
        ended = instance.await_lease(made.json()["id"], "ended")
        assert ended["end_reason"] == "start_failed"
        assert ended["detail"]
    else:
        is_clear(made)


def test_bad_amounts_and_names(instance: Instance) -> None:
    tenant, key = instance.tenant("bad amounts", usd="3")
    for amount in BAD_AMOUNTS:
        is_clear(instance.api("POST", f"/v1/tenants/{tenant}/credits", {"amount_usd": amount}))
    assert instance.wallet(key)["balance_usd"] == "3.00"
    for name in BAD_NAMES:
        body = json.dumps({"name": name}).encode()
        for path in ("/v1/tenants", f"/v1/tenants/{tenant}/keys"):
            is_clear(
                httpx.post(
                    instance.ready["api_url"] + path,
                    content=body,
                    headers={"Authorization": f"Bearer {instance.ready['operator_key']}"},
                )
            )
    unicode = instance.api("POST", "/v1/tenants", {"name": "Ünïcødé 北京 🚀"})
    assert unicode.status_code == 201
    assert instance.api("POST", "/v1/tenants", {"name": "Ünïcødé 北京 🚀"}).status_code == 409


def test_bad_keys(instance: Instance) -> None:
    tenant, key = instance.tenant("bad keys")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    made = instance.api("POST", f"/v1/tenants/{tenant}/keys", {"name": "short", "expires_at": soon})
    short = made.json()["key"]

    def expired() -> bool:
        return instance.api("GET", "/v1/wallet", key=short).status_code == 401

    until(expired)
    assert "expired" in instance.api("GET", "/v1/wallet", key=short).json()["error"]["message"]
    revoked = instance.api("POST", "/v1/keys", {"name": "gone"}, key=key).json()
    assert instance.api("DELETE", f"/v1/keys/{revoked['id']}", key=key).status_code == 204
    for bad in (short, revoked["key"], "sk-sublet-nothing", "x", "a\u00e9b"):
        header = b"Bearer " + bad.encode()
        for url in (
            instance.ready["api_url"] + "/v1/wallet",
            instance.ready["gateway_http_url"] + "/v1/models",
        ):
            answer = httpx.get(url, headers={b"Authorization": header})
            assert answer.status_code == 401, (bad, url)
            is_clear(answer)
    past = {"name": "past", "expires_at": "2020-01-01T00:00:00Z"}
    is_clear(instance.api("POST", f"/v1/tenants/{tenant}/keys", past))
    no_zone = {"name": "zone", "expires_at": "2040-01-01T00:00:00"}
    is_clear(instance.api("POST", f"/v1/tenants/{tenant}/keys", no_zone))
    for url in ("/v1/wallet", "/v1/leases"):
        assert httpx.get(instance.ready["api_url"] + url).status_code == 401
    operator = httpx.post(
        instance.ready["gateway_http_url"] + "/v1/chat/completions",
        json=CHAT,
        headers={"Authorization": f"Bearer {instance.ready['operator_key']}"},
    )
    assert operator.status_code == 403


@pytest.mark.parametrize(
    ("address", "path"),
    [("api_url", "/v1/leases"), ("gateway_http_url", "/v1/chat/completions")],
)
def test_bodies_too_large_or_cut_short(instance: Instance, address: str, path: str) -> None:
    key = instance.ready["tenant_key"]
    before = instance.wallet(key)
    large = httpx.post(
        instance.ready[address] + path,
        content=b'{"command": ["' + b"x" * (10 << 20) + b'"]}',
        headers={"Authorization": f"Bearer {key}"},
    )
    assert large.status_code == 413
    is_clear(large)
    where = urlsplit(instance.ready[address])
    with socket.create_connection((where.hostname, where.port), timeout=120) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            'Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{"model":'.encode()
        )
        started = time.monotonic()
        answer = connection.recv(65536)  # it does not wait for ever
        assert time.monotonic() - started < 25
        assert answer == b"" or answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400"))
    with socket.create_connection((where.hostname, where.port), timeout=120) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{".encode()
        )
    after = instance.wallet(key)
    assert Decimal(after["held_usd"]) == Decimal(before["held_usd"]) == 0
    assert after == before
    instance.verify()
