"""The engine's own process: llama.cpp's server on a private port, until stdin closes.

Asked for embeddings, it starts a second server beside the first, over the same weights. What
that one reads cannot get into the first one's slots, from which counts are read.

Adapters are loaded with a server, and none can be added later. So for other adapters it starts
another server over the same weights, and lets go of the one before when it is told that nothing
runs there any more.

It is apart from the agent because loading a model holds Python's lock for seconds, in which
the agent must already answer; and because a crash of native code must not take the counts
of running requests with it.

It reads one line of JSON on stdin (`Settings`; not argv, which every user of the machine can
read), writes `{"address": ...}` on stdout once loaded, the same for each line `EMBED` or `ADAPT`
that comes then, and ends when stdin does: so it cannot outlive the agent, however that died.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from sublet.models.replica.recipe import Adapter, Recipe
from sublet.models.replica.weights import Where, adapter_at_hand, at_hand

EMBED: Final = b"embeddings\n"
ADAPT: Final = b"adapters "  # and a list of them, as JSON
DROP: Final = b"drop\n"  # the oldest server that generates
# Of a prompt that is embedded: it is read in parts, and more at once would take memory.
_EMBED_BATCH: Final = 64


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    recipe: Recipe
    where: Where  # its weights are found
    threads: int
    key: str  # that the agent must show
    adapters: tuple[Adapter, ...] = ()


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    trouble: str | None = None  # why there is no such server


_ADAPTERS: Final = msgspec.json.Decoder(tuple[Adapter, ...])


def main() -> None:
    # Whoever tells the agent to go tells its whole process group. The agent decides what
    # becomes of running streams; the engine serves them until its agent lets go of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    with ExitStack() as kept:  # every server reads the same file, so it is in memory once
        path = kept.enter_context(at_hand(settings.recipe, settings.where))
        servers = deque([_generate(settings, settings.adapters, path)])
        embedding = None
        while line := sys.stdin.buffer.readline():
            if line == EMBED:
                embedding = embedding or _serve(_embedding(settings, settings.recipe, path))
            elif line == DROP:
                servers.popleft()
            else:
                adapters = _ADAPTERS.decode(line.removeprefix(ADAPT))
                try:
                    servers.append(_generate(settings, adapters, path))
                except Exception as error:  # noqa: BLE001 - it goes on with what it has
                    _tell(Ready(address="", trouble=f"{type(error).__name__}: {error}"))
    # Past the destructors: they wait for running requests, and nobody listens any more.
    os._exit(0)


def _generate(settings: Settings, adapters: Sequence[Adapter], path: Path) -> Any:
    params = _generating(settings, settings.recipe, path)
    with ExitStack() as opened:
        found = [_adapter(one, settings, opened) for one in adapters]
        params.lora_adapters = found
        return _serve(params)


def _adapter(adapter: Adapter, settings: Settings, opened: ExitStack) -> Any:
    import xllamacpp  # noqa: PLC0415 - as below

    assert settings.where.artefacts is not None
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path = str(opened.enter_context(adapter_at_hand(adapter, Path(settings.where.artefacts))))
    info.scale = 0.0  # where a request names none
    return info


def _serve(params: Any) -> Any:
    """Start a server, and say where it listens."""
    import xllamacpp  # noqa: PLC0415 - as below

    server = xllamacpp.Server(params)
    _tell(Ready(address=server.listening_address))
    return server


def _tell(ready: Ready) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(ready) + b"\n")
    sys.stdout.buffer.flush()


def _common(settings: Settings, recipe: Recipe, path: Path) -> Any:
    import xllamacpp  # noqa: PLC0415 - native and large: nothing else may pay for it

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {recipe.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings.key]
    params.ui = False
    params.verbosity = 0  # its log could show prompts
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.kv_unified = False  # a slot keeps its own prompt: its length is our count
    params.ctx_shift = False
    params.fit_params = False
    # Prompts are reused within their slot only; copies of idle ones would take gigabytes.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    return params


def _generating(settings: Settings, recipe: Recipe, path: Path) -> Any:
    params = _common(settings, recipe, path)
    params.endpoint_slots = True  # the count after a hang-up
    params.endpoint_metrics = True
    params.sse_ping_interval = -1
    # Streams hold a thread each; the rest are for counting and looking at slots.
    params.n_threads_http = recipe.slots + 8
    params.n_parallel = recipe.slots
    params.n_ctx = recipe.slots * recipe.context_tokens
    params.n_batch = params.n_ubatch = recipe.batch_tokens
    params.n_ctx_checkpoints = 4
    params.use_jinja = True
    params.chat_template = recipe.chat_template
    return params


def _embedding(settings: Settings, recipe: Recipe, path: Path) -> Any:
    import xllamacpp  # noqa: PLC0415 - as above

    assert recipe.pooling is not None
    params = _common(settings, recipe, path)
    params.embedding = True
    kinds = xllamacpp.llama_pooling_type
    params.pooling_type = getattr(kinds, f"LLAMA_POOLING_TYPE_{recipe.pooling.upper()}")
    params.n_threads_http = 4
    params.n_parallel = 1
    params.n_ctx = recipe.context_tokens
    # Only the last token's vector can be had from a prompt that is read in parts.
    parts = recipe.pooling == "last"
    params.n_batch = params.n_ubatch = _EMBED_BATCH if parts else recipe.context_tokens
    params.warmup = False
    return params


if __name__ == "__main__":
    main()
