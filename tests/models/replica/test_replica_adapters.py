"""A replica that serves adapters on top of its model: those that it should, and nothing of others."""

import base64
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from tests.models.replica.harness import Running, replica, until
from tests.tuning.lesson import PYTHON, TINY, needs_trainer

from sublet.models import serving
from sublet.models.chest import Chest, Place, new_key
from sublet.models.replica.recipe import Adapter, Licence, SealedFile, SealedWeights

pytestmark = needs_trainer
QUESTION = [{"role": "user", "content": "hello there, how are you today?"}]
X, Y = uuid4(), uuid4()


class Store:
    """The control plane, as far as a replica knows it: keys, and which adapters there are."""

    def __init__(self, folder: Path) -> None:
        self.chest = Chest(folder / "chest")
        self.keys: dict[UUID, bytes] = {}
        self.wanted: list[Adapter] = []
        self.weights: UUID = uuid4()
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = base64.b64encode(store.keys[store.weights]).decode()
                said = {"/key": {"key": key}, "/adapters": {"adapters": store.wanted}}
                body = msgspec.json.encode(said[self.path])
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def seal(self, id_: UUID, path: Path) -> SealedFile:
        plain, key = path.read_bytes(), new_key()
        self.keys[id_] = key
        self.chest.put(Place(artefact=id_, file=0, part=0), plain, key=key)
        digest = hashlib.sha256(plain).hexdigest()
        return SealedFile(path=path.name, size=len(plain), sha256=digest)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("adapters"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def adapters(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[UUID, Adapter]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for seed, id_ in enumerate((X, Y)):
        path = folder / f"{seed}.gguf"
        subprocess.run(
            [PYTHON, TINY.with_name("adapter.py"), path, str(seed)],
            env=os.environ | {"PYTHONPATH": "src"}, check=True,
        )  # fmt: skip
        file = store.seal(id_, path)
        key = base64.b64encode(store.keys[id_]).decode()
        found[id_] = Adapter(id=id_, number=0, file=file, key=key)
    return found


@pytest.fixture(scope="module")
def tiny(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A replica with one slot, so that everybody's prompts go through the same cache."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([PYTHON, TINY, folder / "tiny.gguf"], check=True)
    weights = SealedWeights(
        artefact=store.weights, files=(store.seal(store.weights, folder / "tiny.gguf"),)
    )
    recipe = serving.load("llama.cpp").recipe(
        name="tiny", title="Tiny", context_tokens=512, weights=weights,
        licence=Licence(name="none", url=""),
    )  # fmt: skip
    said = json.loads(msgspec.json.encode(recipe)) | {"slots": 1}
    more = [
        "--artefacts", str(store.chest.root), "--weights-key-url", f"{store.url}/key",
        "--adapters-url", f"{store.url}/adapters",
    ]  # fmt: skip
    with replica(folder / "log", weights=folder, recipe=json.dumps(said), more=more) as running:
        until(lambda: running.health()[0] == 200, what="loading the model")
        yield running


def ask(tiny: Running, adapter: UUID | None = None) -> Any:
    headers = {} if adapter is None else {"x-sublet-adapter": str(adapter)}
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 24}
    return tiny.client.post("/v1/chat/completions", json=body, headers=headers)


def words(tiny: Running, adapter: UUID | None = None) -> str:
    answer = ask(tiny, adapter)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def give(tiny: Running, store: Store, *wanted: Adapter) -> None:
    store.wanted = list(wanted)
    ids = sorted(str(one.id) for one in wanted)
    until(lambda: tiny.client.put("/adapters").json() == {"adapters": ids}, what="the adapters")


def test_each_adapter_answers_by_itself_and_reads_nothing_of_another_ones_cache(
    tiny: Running, store: Store, adapters: dict[UUID, Adapter]
) -> None:
    base = words(tiny)
    refused = ask(tiny, X)
    assert refused.status_code == 503
    assert refused.json()["error"]["type"] == "unavailable", "so that another replica is asked"
    give(tiny, store, adapters[X])
    of_x = words(tiny, X)
    assert of_x != base
    # By turns in the one slot there is: whoever came before has left nothing.
    assert [words(tiny, one) for one in (None, X, None, None, X)] == [base, of_x, base, base, of_x]
    give(tiny, store, adapters[X], adapters[Y])
    of_y = words(tiny, Y)
    assert len({base, of_x, of_y}) == 3
    for one, expected in ((X, of_x), (Y, of_y), (None, base), (Y, of_y), (X, of_x)):
        assert words(tiny, one) == expected
    again = ask(tiny, X).json()["sublet"]
    assert again["cache_read_tokens"] > 0, "its own it does use again"
    # What is deleted is missed; the order of those that stay does not matter.
    give(tiny, store, adapters[Y])
    assert words(tiny, Y) == of_y
    assert ask(tiny, X).status_code == 503
    give(tiny, store)
    assert words(tiny) == base
    assert ask(tiny, Y).status_code == 503


def test_a_stream_is_not_cut_by_new_adapters(
    tiny: Running, store: Store, adapters: dict[UUID, Adapter]
) -> None:
    give(tiny, store, adapters[X])
    body = {"messages": QUESTION, "stream": True, "max_tokens": 400, "seed": 1}
    headers = {"x-sublet-adapter": str(X)}
    with tiny.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        stream = answer.iter_lines()
        next(stream)
        give(tiny, store, adapters[Y])
        *_, last = [line for line in stream if line]
    assert last == "data: [DONE]"
    assert ask(tiny, X).status_code == 503
    assert ask(tiny, Y).status_code == 200


def test_an_adapter_that_cannot_be_loaded_stops_nothing(
    tiny: Running, store: Store, adapters: dict[UUID, Adapter], tmp_path: Path
) -> None:
    give(tiny, store, adapters[X])
    before = words(tiny, X)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    id_ = uuid4()
    file = store.seal(id_, broken)
    key = base64.b64encode(store.keys[id_]).decode()
    store.wanted = [Adapter(id=id_, number=0, file=file, key=key)]
    tiny.client.put("/adapters")
    until(
        lambda: any(one["event"] == "replica.adapters_failed" for one in tiny.events()),
        what="the failure",
    )
    assert words(tiny, X) == before
