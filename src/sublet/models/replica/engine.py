"""The engine's own process: llama.cpp's server on a private port, until stdin closes.

It is apart from the agent because loading a model holds Python's lock for seconds, in which
the agent must already answer; and because a crash of native code must not take the counts
of running requests with it.

It reads one line of JSON on stdin (`Settings`; not argv, which every user of the machine can
read), writes `{"address": ...}` on stdout once loaded, and ends when stdin does: so it cannot
outlive the agent, however that died.
"""

import os
import signal
import sys
from pathlib import Path

import msgspec

from sublet.models.replica.recipe import load
from sublet.models.replica.weights import prepare


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    recipe: str
    weights: str  # folder of the assembled weights
    threads: int
    key: str  # that the agent must show


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    address: str


def main() -> None:
    # Whoever tells the agent to go tells its whole process group. The agent decides what
    # becomes of running streams; the engine serves them until its agent lets go of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    recipe = load(settings.recipe)
    path = prepare(recipe.weights, Path(settings.weights))

    import xllamacpp  # noqa: PLC0415 - native and large: nothing else may pay for it

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {recipe.name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings.key]
    params.ui = False
    params.endpoint_slots = True  # the count after a hang-up
    params.endpoint_metrics = True
    params.sse_ping_interval = -1
    # Streams hold a thread each; the rest are for counting and looking at slots.
    params.n_threads_http = recipe.slots + 8
    params.verbosity = 0  # its log could show prompts

    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.n_parallel = recipe.slots
    params.kv_unified = False  # a slot keeps its own prompt: its length is our count
    params.n_ctx = recipe.slots * recipe.context_tokens
    params.n_batch = params.n_ubatch = recipe.batch_tokens
    params.ctx_shift = False
    params.fit_params = False
    # Prompts are reused within their slot only; copies of idle ones would take gigabytes.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 4
    params.use_jinja = True
    params.chat_template = recipe.chat_template

    server = xllamacpp.Server(params)
    ready = msgspec.json.encode(Ready(address=server.listening_address))
    sys.stdout.buffer.write(ready + b"\n")
    sys.stdout.buffer.flush()

    sys.stdin.buffer.read()
    # Past the destructors: they wait for running requests, and nobody listens any more.
    os._exit(0)


if __name__ == "__main__":
    main()
