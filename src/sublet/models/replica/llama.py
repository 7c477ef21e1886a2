"""What the agent says to llama.cpp's server, and hears: the few fields that it needs."""

from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from sublet.core.errors import Unavailable


class Timings(msgspec.Struct, frozen=True):
    cache_n: int  # prompt tokens found in the slot's cache
    prompt_n: int  # prompt tokens read so far
    predicted_n: int  # tokens generated so far


class Progress(msgspec.Struct, frozen=True):
    total: int  # tokens of the whole prompt, cached ones included
    cache: int
    processed: int


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class FinalUsage(msgspec.Struct, frozen=True):
    completion_tokens: int
    prompt_tokens: int
    prompt_tokens_details: PromptDetails = PromptDetails()


class Choice(msgspec.Struct, frozen=True):
    text: str = ""  # of /v1/completions
    delta: dict[str, Any] = {}  # of /v1/chat/completions
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Problem(msgspec.Struct, frozen=True):
    message: str = "the engine failed"
    type: str = "server_error"


class Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    timings: Timings | None = None
    prompt_progress: Progress | None = None
    usage: FinalUsage | None = None
    error: Problem | None = None


class Slot(msgspec.Struct, frozen=True):
    id: int
    is_processing: bool
    n_prompt_tokens: int = 0  # tokens in its cache: prompt, and all generated but the last


class Counted(msgspec.Struct, frozen=True):
    input_tokens: int


class Tokens(msgspec.Struct, frozen=True):
    tokens: list[int]


_CHUNK: Final = msgspec.json.Decoder(Chunk)
_SLOTS: Final = msgspec.json.Decoder(list[Slot])


def decode_chunk(line: bytes) -> Chunk | None:
    """Read one line of an event stream; None for a line that carries no chunk.

    Raises:
        Unavailable: the engine speaks another language, or broke off within the line.
    """
    if not line.startswith(b"data: {"):
        return None
    try:
        return _CHUNK.decode(line[len(b"data: ") :])
    except msgspec.DecodeError as error:
        raise Unavailable(f"the engine sent what is no chunk: {error}") from error


class Llama:
    """A client of one server on this machine."""

    def __init__(self, address: str, key: str) -> None:
        self._address = address
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=2**20,  # a line with many logprobs must fit
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def post(self, path: str, body: dict[str, Any]) -> aiohttp.ClientResponse:
        """Start a call and return once the engine has taken it up or refused it.

        Raises:
            Unavailable: the engine is gone.
        """
        try:
            return await self._session.post(self._address + path, json=body)
        except aiohttp.ClientError as error:
            raise Unavailable(f"the engine does not answer: {error}") from error

    async def slots(self) -> list[Slot]:
        return _SLOTS.decode(await self.get("/slots"))

    async def get(self, path: str) -> bytes:
        try:
            async with self._session.get(self._address + path) as response:
                response.raise_for_status()
                return await response.read()
        except aiohttp.ClientError as error:
            raise Unavailable(f"the engine does not answer: {error}") from error
