"""Measuring a model: how many tokens a second one replica makes with all its slots at work."""

import http.client
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sublet.core.errors import Refused, Unavailable
from sublet.models.deployment import Replica, ReplicaState

TOKENS: Final = 48  # of each slot
_SECONDS: Final = 60.0


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Answer(msgspec.Struct):
    usage: _Usage


def measure(replicas: Sequence[Replica], *, slots: int) -> float:
    """Return the output tokens a second of one replica, by a burst that fills its slots.

    Nobody is charged for it: it goes to the replica, and not through a gateway.

    Raises:
        Refused: none is ready.
        Unavailable: it did not answer, or not well.
    """
    ready = [replica for replica in replicas if replica.state is ReplicaState.READY]
    if not ready:
        raise Refused("no replica is ready: start one first")
    replica = ready[-1]
    together = threading.Barrier(slots + 1)
    with ThreadPoolExecutor(slots, thread_name_prefix="measure") as threads:
        work = [
            threads.submit(_complete, replica, f"{number}. Once upon a time", together)
            for number in range(slots)
        ]
        together.wait(_SECONDS)
        began = time.monotonic()
        made = sum(one.result() for one in work)
        seconds = time.monotonic() - began
    if not made:
        raise Unavailable("the replica made no tokens")
    return made / seconds


def _complete(replica: Replica, prompt: str, together: threading.Barrier) -> int:
    address = urlsplit(replica.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=_SECONDS)
    body = {"model": replica.deployment, "prompt": prompt, "max_tokens": TOKENS, "stream": False}
    headers = {
        "Authorization": f"Bearer {replica.secret}",
        "Content-Type": "application/json",
        "X-Sublet-Tier": "batch",  # whoever pays goes first
    }
    together.wait(_SECONDS)
    try:
        connection.request("POST", "/v1/completions", msgspec.json.encode(body), headers)
        answer = connection.getresponse()
        raw = answer.read()
        if answer.status != http.client.OK:
            raise Unavailable(f"the replica refused it: {raw[:200].decode(errors='replace')}")
        return msgspec.json.decode(raw, type=_Answer).usage.completion_tokens
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise Unavailable(f"the replica broke off: {error}") from error
    finally:
        connection.close()
