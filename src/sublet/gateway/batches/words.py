"""Batches in the words of OpenAI and Anthropic: what is shown of one, and a line's result."""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Raw

from sublet.gateway import anthropic, embeddings, files, openai, responses
from sublet.gateway.batches.store import Batch, Dialect, State
from sublet.gateway.dialect import Dialect as Words
from sublet.gateway.failures import Failure
from sublet.gateway.pages import Name

OPENAI: Final = Name("batch_", "batch")
ANTHROPIC: Final = Name("msgbatch_", "message batch")
NAMES: Final[Mapping[Dialect, Name]] = MappingProxyType(
    {Dialect.OPENAI: OPENAI, Dialect.ANTHROPIC: ANTHROPIC}
)
MESSAGES: Final = "/v1/messages"
WORDS: Final[Mapping[str, Words]] = MappingProxyType(
    {
        "/v1/chat/completions": openai.CHAT,
        "/v1/completions": openai.COMPLETION,
        "/v1/responses": responses.RESPONSES,
        "/v1/embeddings": embeddings.EMBEDDINGS,
        MESSAGES: anthropic.MESSAGES,
    }
)
# What is said of a line that was not answered.
_UNANSWERED: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "expired": (
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        ),
        "cancelled": ("batch_cancelled", "The batch was cancelled before this request began."),
    }
)
_encode: Final = msgspec.json.Encoder().encode


# ── a batch ──────────────────────────────────────────────────────────────────────────────


def openai_document(batch: Batch) -> dict[str, object]:
    counts, cancelled = batch.counts, batch.cancel_asked_at is not None
    expired = bool(counts.expired)
    match batch.state:
        case State.FAILED:
            status = "failed"
        case State.ENDED:
            status = "cancelled" if cancelled else "expired" if expired else "completed"
        case _:
            status = "cancelling" if cancelled else batch.state.value
    ended = batch.ended_at

    def when(instant: datetime | None, *, of: bool = True) -> int | None:
        return int(instant.timestamp()) if of and instant is not None else None

    def file(id_: object) -> str | None:
        return None if id_ is None else files.NAME.of(msgspec.convert(id_, type(batch.id)))

    return {
        "id": OPENAI.of(batch.id),
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": files.NAME.of(batch.input_file),
        "completion_window": "24h",
        "status": status,
        "output_file_id": file(batch.output_file),
        "error_file_id": file(batch.error_file),
        "created_at": when(batch.created_at),
        "in_progress_at": when(batch.begun_at),
        "expires_at": when(batch.expires_at),
        "finalizing_at": when(batch.finalizing_at),
        "completed_at": when(ended, of=status == "completed"),
        "failed_at": when(ended, of=status == "failed"),
        "expired_at": when(ended, of=status == "expired"),
        "cancelling_at": when(batch.cancel_asked_at),
        "cancelled_at": when(ended, of=status == "cancelled"),
        "request_counts": {
            "total": counts.total,
            "completed": counts.answered,
            "failed": counts.refused + counts.expired,
        },
        "metadata": batch.metadata,
    }


def anthropic_document(batch: Batch, *, results_url: str) -> dict[str, object]:
    counts, ended = batch.counts, batch.state in (State.ENDED, State.FAILED)
    done = counts.answered + counts.refused + counts.expired + counts.cancelled
    going = "in_progress" if batch.cancel_asked_at is None else "canceling"
    return {
        "id": ANTHROPIC.of(batch.id),
        "type": "message_batch",
        "processing_status": "ended" if ended else going,
        "request_counts": {
            # Theirs are told once all are processed.
            "processing": 0 if ended else counts.total,
            "succeeded": counts.answered if ended else 0,
            "errored": (counts.refused + counts.total - done) if ended else 0,
            "canceled": counts.cancelled if ended else 0,
            "expired": counts.expired if ended else 0,
        },
        "ended_at": _iso(batch.ended_at),
        "created_at": _iso(batch.created_at),
        "expires_at": _iso(batch.expires_at),
        "archived_at": None,
        "cancel_initiated_at": _iso(batch.cancel_asked_at),
        "results_url": results_url if batch.state is State.ENDED else None,
    }


def _iso(instant: datetime | None) -> str | None:
    return None if instant is None else instant.strftime("%Y-%m-%dT%H:%M:%SZ")


# ── a line's result ──────────────────────────────────────────────────────────────────────


def answered(dialect: Dialect, custom_id: str, request_id: str, body: bytes) -> bytes:
    """Return what is said of a line that was answered."""
    if dialect is Dialect.ANTHROPIC:
        return _result(custom_id, {"type": "succeeded", "message": Raw(body)})
    return _response(custom_id, request_id, 200, body)


def refused(
    dialect: Dialect, words: Words, custom_id: str, request_id: str, failure: Failure
) -> bytes:
    status, body, _ = words.refuse(failure, request_id)
    if dialect is Dialect.ANTHROPIC:
        return _result(custom_id, {"type": "errored", "error": Raw(body)})
    return _response(custom_id, request_id, status, body)


def unanswered(dialect: Dialect, custom_id: str, request_id: str, state: str) -> bytes:
    """Return what is said of a line that expired, or was cancelled."""
    if dialect is Dialect.ANTHROPIC:
        return _result(custom_id, {"type": "canceled" if state == "cancelled" else state})
    code, message = _UNANSWERED[state]
    return _encode(
        {
            "id": f"batch_{request_id}",
            "custom_id": custom_id,
            "response": None,
            "error": {"code": code, "message": message},
        }
    )


def _response(custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
    return _encode(
        {
            "id": f"batch_{request_id}",
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": request_id, "body": Raw(body)},
            "error": None,
        }
    )


def _result(custom_id: str, result: Mapping[str, object]) -> bytes:
    return _encode({"custom_id": custom_id, "result": result})
