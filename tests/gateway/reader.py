"""A client that reads a stream beside the test."""

import threading
from typing import Any

import httpx
from openai import APIError
from tests.gateway.stage import MODEL, Stage, eventually, says


class Reader(threading.Thread):
    """A client that reads a stream to its end, beside the test."""

    def __init__(self, stage: Stage, key: str, **script: Any) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.error: APIError | httpx.TransportError | None = None
        self._stage, self._key, self._script = stage, key, script
        self.start()
        eventually(lambda: len(self.texts) > 2)

    def run(self) -> None:
        messages: Any = says(**self._script)
        with self._stage.client(self._key) as client:
            try:
                for chunk in client.chat.completions.create(
                    model=MODEL, messages=messages, stream=True
                ):
                    self.texts.append(chunk.choices[0].delta.content or "")
            except (APIError, httpx.TransportError) as error:
                self.error = error
            except Exception as error:  # noqa: BLE001 - the SDK's own transport's errors
                self.error = httpx.ReadError(str(error))
