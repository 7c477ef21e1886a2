"""Files of tenants: OpenAI's SDK, reading strictly, sends them, lists them, reads and deletes them."""

import json
import random
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.gateway.stage import Stage, eventually

from sublet.core.vault import Vault
from sublet.models import stored
from sublet.models.catalogue import Shelf
from sublet.models.chest import PART_BYTES, Chest


def shelf(stage: Stage) -> Shelf:
    vault = Vault(stage.folder / "access-keys.key")
    return Shelf(chest=Chest(stage.folder / "artefacts"), vault=vault, most_bytes=1 << 40)


def sweep(stage: Stage, *, after: timedelta = timedelta()) -> None:
    """What the control plane does now and then: delete what is over, and remove its parts."""
    stored.sweep(stage.db, now=datetime.now(UTC) + after)


def at_rest(stage: Stage) -> list[Path]:
    return [path for path in (stage.folder / "artefacts").rglob("*") if path.is_file()]


def test_a_file_is_sent_listed_read_and_deleted_for_good(stage: Stage) -> None:
    tenant, key = stage.tenant()
    client = stage.client(key)
    text = b'{"custom_id":"a secret of the tenant"}\n' * 1000
    sent = client.files.create(file=("ä b.jsonl", text), purpose="batch")
    assert (sent.bytes, sent.filename, sent.purpose) == (len(text), "ä b.jsonl", "batch")
    assert sent.status == "processed" and sent.expires_at == sent.created_at + 30 * 86_400
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).content == text
    head = httpx.head(
        f"{stage.url}/v1/files/{sent.id}/content", headers={"authorization": f"Bearer {key}"}
    )
    assert head.status_code == 200
    assert not any(b"secret" in path.read_bytes() for path in at_rest(stage))

    # Nobody else's keys see it, nor does the operator's spend or read it.
    _, others = stage.tenant()
    for verb in ("retrieve", "content", "delete"):
        with pytest.raises(openai.NotFoundError):
            getattr(stage.client(others).files, verb)(sent.id)
    assert stage.client(others).files.list().data == []

    gone = client.files.delete(sent.id)
    assert gone.deleted and gone.id == sent.id
    with pytest.raises(openai.NotFoundError):
        client.files.content(sent.id)
    with stage.db.transaction() as tx:
        row = tx.execute(
            "SELECT a.sealed_key, a.state FROM artefact a WHERE tenant_id = %s", [tenant.id]
        ).fetchone()
    assert row == {"sealed_key": None, "state": "deleted"}


def test_pages_of_files(stage: Stage) -> None:
    _, key = stage.tenant()
    client = stage.client(key)
    ids = [
        client.files.create(
            file=(f"{i}.jsonl", b"{}"), purpose="fine-tune" if i % 2 else "user_data"
        ).id
        for i in range(5)
    ]
    assert [file.id for file in client.files.list()] == ids[::-1]
    first = client.files.list(limit=2)
    assert [file.id for file in first.data] == [ids[4], ids[3]] and first.has_more
    assert [file.id for file in first] == ids[::-1]  # the SDK asks for the other pages itself
    assert [file.id for file in client.files.list(order="asc", limit=3)] == ids
    assert [file.id for file in client.files.list(purpose="fine-tune")] == [ids[3], ids[1]]
    for query in ({"limit": 0}, {"order": "up"}, {"colour": "red"}, {"after": "file-none"}):
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.list(extra_query=query)
        assert caught.value.status_code in {400, 404}, query


def test_a_large_file_goes_through_in_parts(stage: Stage) -> None:
    _, key = stage.tenant()
    client = stage.client(key)
    assert stage.gateway is not None
    before = stage.gateway.memory_bytes()
    content = random.Random(1).randbytes(3 * PART_BYTES + 12_345)
    sent = client.files.create(file=("large.bin", content), purpose="user_data")
    assert sent.bytes == len(content)
    assert client.files.content(sent.id).content == content
    for _ in range(3):
        client.files.create(file=("large.bin", content), purpose="user_data")
    assert stage.gateway.memory_bytes() - before < 60 << 20
    expiring = client.files.create(
        file=("soon.bin", b"x"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert expiring.expires_at == expiring.created_at + 3600
    sweep(stage, after=timedelta(minutes=61))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(expiring.id)
    assert client.files.retrieve(sent.id).expires_at is None


def form(*parts: tuple[str, bytes], boundary: str = "b") -> bytes:
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    )
    return body + f"--{boundary}--\r\n".encode()


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="a.jsonl"', b"{}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (form(FILE), "no field 'purpose'"),
        (form(PURPOSE), "no field 'file'"),
        (form(FILE, FILE, PURPOSE), "two files"),
        (form(('name="purpose"', b"vision"), FILE), "purpose must be one of"),
        (form(FILE, ('name="purpose"', b"vision")), "purpose must be one of"),
        (form(PURPOSE, ('name="file"; filename="a.csv"', b"a,b")), "ends with .jsonl"),
        (form(PURPOSE, ('name="file"; filename="a.jsonl"', b"")), "file is empty"),
        (form(PURPOSE, ('name="colour"', b"red"), FILE), "colour"),
        (form(PURPOSE, FILE, ('name="expires_after[seconds]"', b"9999")), "created_at"),
        (
            form(
                PURPOSE, FILE, ('name="expires_after[seconds]"', b"12"),
                ('name="expires_after[anchor]"', b"created_at"),
            ),
            "from 3600",
        ),
        (form(PURPOSE, FILE)[:-20], "breaks off"),
        (b"--b\r\nnonsense", "form"),
        (b"", "breaks off"),
    ],
)  # fmt: skip
def test_bad_forms_are_told_and_leave_nothing(stage: Stage, body: bytes, says: str) -> None:
    _, key = stage.tenant()
    answer = httpx.post(
        f"{stage.url}/v1/files",
        content=body,
        headers={
            "authorization": f"Bearer {key}",
            "content-type": "multipart/form-data; boundary=b",
        },
    )
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert stage.client(key).files.list().data == []
    plain = httpx.post(f"{stage.url}/v1/files", json={}, headers={"authorization": f"Bearer {key}"})
    assert plain.status_code == 400 and "multipart/form-data" in plain.text


def test_the_file_may_come_before_its_fields(stage: Stage) -> None:
    _, key = stage.tenant()
    answer = httpx.post(
        f"{stage.url}/v1/files",
        content=form(FILE, PURPOSE),
        headers={
            "authorization": f"Bearer {key}",
            "content-type": "multipart/form-data; boundary=b",
        },
    )
    assert answer.json()["purpose"] == "batch", answer.text


def test_limits_of_size(own_stage: Stage) -> None:
    own_stage.start(most_file_bytes=100_000, tenant_bytes=250_000)
    _, key = own_stage.tenant()
    client = own_stage.client(key)
    with pytest.raises(openai.APIStatusError, match="may have 100000 bytes") as caught:
        client.files.create(file=("a.bin", b"x" * 100_001), purpose="user_data")
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=("a.bin", b"x" * 3_000_000), purpose="user_data")
    assert caught.value.status_code == 413
    for _ in range(2):
        client.files.create(file=("a.bin", b"x" * 100_000), purpose="user_data")
    with pytest.raises(openai.RateLimitError, match="a tenant may keep 250000") as limited:
        client.files.create(file=("a.bin", b"x" * 100_000), purpose="user_data")
    assert limited.value.response.headers["x-should-retry"] == "false"
    assert len(client.files.list().data) == 2


def test_an_upload_that_breaks_off_leaves_nothing(stage: Stage) -> None:
    tenant, key = stage.tenant()
    body = form(PURPOSE, ('name="file"; filename="a.jsonl"', b"{}\n" * PART_BYTES))
    address = httpx.URL(stage.url)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: {address.host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: multipart/form-data; boundary=b\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head.encode() + body[: 2 * PART_BYTES])
        time.sleep(0.3)

    def states() -> list[Any]:
        with stage.db.transaction() as tx:
            return tx.execute(
                "SELECT state FROM artefact WHERE tenant_id = %s", [tenant.id]
            ).fetchall()

    eventually(lambda: states() == [{"state": "deleted"}])
    # One whose gateway died in the middle is swept after an hour.
    with stage.db.transaction() as tx:
        stored.begin(tx, tenant.id, size=1, shelf=shelf(stage), now=datetime.now(UTC))
    sweep(stage, after=timedelta(minutes=50))
    assert {"state": "receiving"} in states()
    sweep(stage, after=timedelta(minutes=70))
    assert states() == [{"state": "deleted"}] * 2


def test_a_disk_that_takes_nothing_is_told(own_stage: Stage) -> None:
    own_stage.start(file_bytes=200_000)  # no process may write a longer one
    _, key = own_stage.tenant()
    client = own_stage.client(key)
    with pytest.raises(openai.InternalServerError, match="store of artefacts takes nothing"):
        client.files.create(file=("a.bin", b"x" * 300_000), purpose="user_data")
    assert client.files.list().data == []
    client.files.create(file=("a.bin", b"x" * 100_000), purpose="user_data")


def test_files_need_their_folder(own_stage: Stage) -> None:
    own_stage.start(artefacts=None)
    _, key = own_stage.tenant()
    answer = httpx.post(
        f"{own_stage.url}/v1/files",
        content=form(PURPOSE, FILE),
        headers={
            "authorization": f"Bearer {key}",
            "content-type": "multipart/form-data; boundary=b",
        },
    )
    assert answer.status_code == 503
    assert "folder that files are in" in json.loads(answer.text)["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/v1/files", 405), ("POST", "/v1/files/file-x", 405),
        ("GET", "/v1/files/file-x/nonsense", 404), ("GET", "/v1/files/file-x", 404),
        ("GET", "/v1/files/../etc", 404), ("DELETE", f"/v1/files/file-{'0' * 32}", 404),
    ],
)  # fmt: skip
def test_paths_and_methods(stage: Stage, method: str, path: str, status: int) -> None:
    _, key = stage.tenant()
    answer = httpx.request(method, stage.url + path, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == status, answer.text
