"""A tenant brings a model of its own: sealed, served when asked, charged, deleted for good."""

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.e2e.instance import Instance, until

from sublet.models.replica.recipe import load
from sublet.models.replica.weights import prepare

pytestmark = pytest.mark.e2e
GEMMA = load("gemma-3-270m")
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
CLIENTS: list[httpx.Client] = []
OPEN = {"licence": "gemma", "licence_url": "https://ai.google.dev/gemma/terms"}


@pytest.fixture(scope="module")
def weights(pytestconfig: pytest.Config) -> Path:
    if (missing := GEMMA.missing()) is not None:
        pytest.skip(missing)
    assert GEMMA.weights is not None
    return prepare(GEMMA.weights, pytestconfig.cache.mkdir("sublet-weights"))


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("own-models")
    imports = folder / "imports"
    imports.mkdir()
    own = Instance(
        folder / "data",
        variables={"SUBLET_MODEL": "0", "SUBLET_MODELS_FOLDER": str(imports)},
    )
    try:
        yield own.start()
        assert own.stop() == 0, own.output()
    finally:
        for client in CLIENTS:
            client.close()
        own.clean_up()


def api_of(instance: Instance, key: str) -> httpx.Client:
    client = httpx.Client(
        base_url=instance.ready["api_url"],
        headers={"authorization": f"Bearer {key}"},
        timeout=120,
    )
    CLIENTS.append(client)
    return client


def settled(instance: Instance, key: str, name: str) -> Any:
    """Return the model once it was read."""

    def look() -> Any:
        model = api_of(instance, key).get(f"/v1/models/{name}").json()
        return model if model["state"] in {"ready", "refused"} else None

    return until(look, seconds=60, what=f"reading {name}")


def ask(instance: Instance, key: str, name: str) -> Any:
    """Ask until it is up, and wait for as long as it says each time."""
    client = instance.openai(key).with_options(max_retries=0)
    until_ = time.monotonic() + 120
    while True:
        try:
            return client.chat.completions.create(
                model=name, messages=QUESTION, max_tokens=20, temperature=0
            )
        except openai.InternalServerError as error:
            if error.code != "model_not_ready" or time.monotonic() > until_:
                raise
            time.sleep(min(2.0, float(error.response.headers["retry-after-ms"]) / 1000))


def test_import_deploy_call_charge_and_delete(instance: Instance, weights: Path) -> None:
    _, key = instance.tenant("lab")
    _, others = instance.tenant("others")
    home = instance.data.parent / "imports" / "lab"
    home.mkdir()
    (home / "gemma.gguf").hardlink_to(weights)
    body = {
        "name": "mine", "source": {"kind": "path", "path": "gemma.gguf"}, **OPEN,
        "chat_template": GEMMA.chat_template, "context_tokens": 2048,
    }  # fmt: skip
    api = api_of(instance, key)
    assert api.post("/v1/models", json=body).status_code == 201
    model = settled(instance, key, "lab/mine")
    assert (model["state"], model["architecture"]) == ("ready", "gemma3"), model
    assert model["files"][0]["sha256"] == GEMMA.weights.sha256  # type: ignore[union-attr]

    # At rest it is noise, and nobody else sees that it is there.
    parts = sorted((instance.data / "artefacts").rglob("[0-9]" * 6))
    assert len(parts) == -(-weights.stat().st_size // (8 << 20))
    assert b"general.architecture" in weights.read_bytes()[:100_000]
    assert not any(b"general.architecture" in part.read_bytes() for part in parts)
    assert api_of(instance, others).get("/v1/models/lab/mine").status_code == 404
    assert api_of(instance, others).get("/v1/models").json() == {"items": []}
    assert api_of(instance, others).delete("/v1/models/lab/mine").status_code == 404

    # It costs nothing until it is asked for; it says when it will be there.
    put = api.put("/v1/models/lab/mine/deployment", json={"idle_seconds": 3600})
    assert put.json()["deployment"]["target"] == 0, put.text
    assert api.put("/v1/models/lab/mine/deployment", json={"min_replicas": 1}).status_code == 422
    listed = instance.openai(key).models.list
    until(lambda: [m.id for m in listed()] == ["lab/mine"], what="the gateway's next look")
    answer = ask(instance, key, "lab/mine")
    assert "Paris" in answer.choices[0].message.content
    assert [m.id for m in instance.openai(key).models.list()] == ["lab/mine"]
    assert list(instance.openai(others).models.list()) == []
    with pytest.raises(openai.NotFoundError):
        instance.openai(others).chat.completions.create(model="lab/mine", messages=QUESTION)
    until(lambda: instance.charges(key), what="the charge")
    charged = {c["sku"].rpartition(":")[2]: c["quantity"] for c in instance.charges(key)}
    assert charged["output"] == answer.usage.completion_tokens
    # What was opened for the engine has no name, nor is it left in any folder.
    assert not list(instance.data.rglob(".weights-*"))
    warm = api.get("/v1/models/lab/mine").json()["deployment"]["warm_seconds"]
    assert warm > 0

    # What it earns stands beside what a lease would pay, once it was measured.
    operator = api_of(instance, instance.ready["operator_key"])
    measured = operator.post("/v1/models/lab/mine/measure", timeout=180)
    assert measured.json()["tokens_per_second"] > 1, measured.text

    def earned() -> Any:
        (item,) = operator.get("/v1/economics", params={"hours": 1}).json()["items"]
        return item if item["output_tokens"] else None

    item = until(earned, seconds=60, what="the sum of what was charged")
    assert item["output_tokens"] == answer.usage.completion_tokens
    assert float(item["revenue_usd"]) == pytest.approx(
        sum(float(c["amount_usd"]) for c in instance.charges(key)), abs=1e-6
    )
    assert float(item["rental_usd_per_gpu_hour"]) > 0 and 0 < item["load"] <= 1
    watts = {"watts": 1000, "pue": 1, "kwh_usd": "0.005", "wear_usd": "0", "support_usd": "0",
             "capital_usd": "0", "capital_share": 0}  # fmt: skip
    assert operator.put("/v1/pools/cpu/floor", json=watts).status_code == 200
    cheap = {"usd": "0.000001", "per": "million_tokens"}
    low = operator.put("/v1/prices/model:lab/mine:output", json=cheap)
    assert low.status_code == 409 and "when its replicas are full" in low.text, low.text
    let = operator.put("/v1/prices/model:lab/mine:output", json={**cheap, "exception": "a gift"})
    assert let.status_code == 200, let.text

    # Deleted for good: no key, no parts, no replica, no name.
    assert api.delete("/v1/models/lab/mine").json()["deleted"]
    until(lambda: not list((instance.data / "artefacts").iterdir()), what="the parts' end")
    with instance.database() as database:
        row = database.execute("SELECT state, sealed_key FROM artefact").fetchone()
        assert row == {"state": "deleted", "sealed_key": None}
        until(
            lambda: (
                (
                    database.execute("SELECT count(*) AS n FROM replica WHERE state <> 'gone'")
                ).fetchone()
                == {"n": 0}
            ),
            what="the replica's end",
        )
    with pytest.raises(openai.NotFoundError):
        instance.openai(key).chat.completions.create(model="lab/mine", messages=QUESTION)
    again = api.post("/v1/models", json=body)
    assert again.status_code == 409 and "choose another name" in again.text


def test_an_upload_goes_on_where_it_was_and_bad_files_are_told(
    instance: Instance, weights: Path
) -> None:
    _, key = instance.tenant("uploads")
    api = api_of(instance, key)
    size = weights.stat().st_size

    def begin(name: str, path: str, bytes_: int) -> httpx.Response:
        source = {"kind": "upload", "files": [{"path": path, "bytes": bytes_}]}
        return api.post("/v1/models", json={"name": name, "source": source, **OPEN})

    assert "pickle" not in begin("a", "pytorch_model.bin", 10).text
    assert "may execute code" in begin("a", "pytorch_model.bin", 10).text
    assert begin("a", "../a.gguf", 10).status_code == 422
    model = begin("whole", "model.gguf", size).json()
    name, part_bytes = model["name"], model["upload"]["part_bytes"]

    def send(part: int, body: bytes, digest: str | None = None, to: str = name) -> httpx.Response:
        sha256 = digest or hashlib.sha256(body).hexdigest()
        params: dict[str, Any] = {"file": "model.gguf", "part": part, "sha256": sha256}
        return api.put(
            f"/v1/models/{to}/parts", params=params, content=body,
            headers={"content-type": "application/octet-stream"},
        )  # fmt: skip

    with weights.open("rb") as file:
        pieces = [file.read(part_bytes) for _ in range(-(-size // part_bytes))]
    assert send(0, pieces[0][:-1]).status_code == 422
    assert "send it again" in send(0, pieces[0], digest="0" * 64).text
    assert send(len(pieces), b"x").status_code == 422
    for number, piece in enumerate(pieces[:-2]):
        assert send(number, piece).json()["received"]
    refused = api.post(f"/v1/models/{name}/complete")
    assert refused.status_code == 409 and "2 parts are missing" in refused.text
    shown = api.get(f"/v1/models/{name}").json()["upload"]
    assert [piece["part"] for piece in shown["next"]] == [len(pieces) - 2, len(pieces) - 1]
    for piece in shown["next"]:
        send(piece["part"], pieces[piece["part"]])
    assert api.post(f"/v1/models/{name}/complete").json()["state"] == "checking"
    assert settled(instance, key, name)["state"] == "ready"

    cut = begin("cut", "model.gguf", part_bytes).json()["name"]
    send(0, pieces[0], to=cut)
    api.post(f"/v1/models/{cut}/complete")
    read = settled(instance, key, cut)
    assert read["state"] == "refused" and "is cut off" in read["detail"]
    bad = begin("bad", "model.gguf", 64).json()["name"]
    send(0, b"\x80\x04\x95" + bytes(61), to=bad)
    api.post(f"/v1/models/{bad}/complete")
    assert "Python pickle" in settled(instance, key, bad)["detail"]
    deployed = api.put(f"/v1/models/{bad}/deployment", json={})
    assert deployed.status_code == 409 and "pickle" in deployed.text


def test_imports_stay_in_the_tenant_s_own_folder(instance: Instance, weights: Path) -> None:
    _, key = instance.tenant("roamer")
    imports = instance.data.parent / "imports"
    (imports / "roamer").mkdir()
    (imports / "secret.gguf").write_bytes(b"GGUF")
    (imports / "roamer" / "link.gguf").symlink_to(imports / "secret.gguf")
    shutil.copy(imports / "secret.gguf", imports / "roamer" / "short.gguf")
    for path, says in (
        ("../secret.gguf", "beneath"),
        ("/etc/passwd", "cannot be read"),
        ("link.gguf", "cannot be read"),
        ("none.gguf", "cannot be read"),
    ):
        source = {"kind": "path", "path": path}
        answer = api_of(instance, key).post(
            "/v1/models", json={"name": "x", "source": source, **OPEN}
        )
        assert answer.status_code == 422 and says in answer.text, (path, answer.text)
    source = {"kind": "path", "path": "short.gguf"}
    made = api_of(instance, key).post("/v1/models", json={"name": "x", "source": source, **OPEN})
    assert made.status_code == 201, made.text
    assert "cut off" in settled(instance, key, "roamer/x")["detail"]
