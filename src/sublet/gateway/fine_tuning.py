"""OpenAI's fine-tuning: to ask for a job, to look at it, to cancel it, and what came of it.

    POST, GET /v1/fine_tuning/jobs   GET …/{id}  …/{id}/events  …/{id}/checkpoints   POST …/{id}/cancel

What is asked for is noted here; the control plane does it (`models/tuning`).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from sublet.core.db import Tx
from sublet.core.errors import NotFound
from sublet.core.ids import new_id
from sublet.gateway import files as file_words
from sublet.gateway.exchange import Exchange
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.files import Files
from sublet.gateway.pages import Name, Query
from sublet.gateway.reading import decode
from sublet.market import store as market
from sublet.market.price import training_sku
from sublet.models import catalogue, stored
from sublet.models.model import full_name
from sublet.models.stored import Purpose, StoredFile
from sublet.models.tuning import store
from sublet.models.tuning.job import (
    LONGEST,
    MOST_CHECKPOINTS,
    MOST_EPOCHS,
    OPEN,
    Checkpoint,
    Event,
    Method,
    State,
    Tuning,
    own_name,
)
from sublet.tenants.tenant import Caller, Tenant

JOB: Final = Name("ftjob-", "fine-tuning job")
_EVENT: Final = Name("ftevent-", "fine-tuning event")
_CHECKPOINT: Final = Name("ftckpt_", "fine-tuning checkpoint")
_encode: Final = msgspec.json.Encoder().encode
_MOST_OPEN: Final = 20  # of one tenant
_RATE: Final = 2e-4  # at a multiplier of 1
_EPOCHS, _BATCH = 3, 4  # where a client leaves it to us
_STATUS: Final = {State.VALIDATING: "validating_files"}
_MARGIN: Final = timedelta(days=1)

_Auto = Literal["auto"]
_Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class _Hyperparameters(Struct, forbid_unknown_fields=True):
    n_epochs: Annotated[int, Meta(ge=1, le=MOST_EPOCHS)] | _Auto = "auto"
    batch_size: Annotated[int, Meta(ge=1, le=256)] | _Auto = "auto"
    learning_rate_multiplier: Annotated[float, Meta(gt=0, le=1000)] | _Auto = "auto"


class _Supervised(Struct, forbid_unknown_fields=True):
    hyperparameters: _Hyperparameters | None = None


class _Method(Struct, forbid_unknown_fields=True):
    type: Literal["supervised"]
    supervised: _Supervised | None = None


class _Create(Struct, forbid_unknown_fields=True):
    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,18}$")] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    hyperparameters: _Hyperparameters | None = None
    method: _Method | None = None
    metadata: _Metadata | None = None
    integrations: Annotated[list[Any], Meta(max_length=0)] | None = None


_CREATE: Final = msgspec.json.Decoder(_Create)


class FineTuning:
    def __init__(self, files: Files) -> None:
        self._files = files
        files.readers.append(_reader)

    async def answer(
        self, exchange: Exchange, caller: Caller, tenant: Tenant, rest: Sequence[str]
    ) -> None:
        """Serve one call; `rest` is what is behind `/v1/fine_tuning/jobs` in its path."""
        match exchange.method, rest:
            case "POST", []:
                shown = document(await self._create(exchange, caller, tenant), tenant)
            case "POST", [name, _]:
                shown = document(await self._cancel(tenant.id, name), tenant)
            case _, []:
                shown = await self._list(exchange, tenant)
            case _, [name]:
                Query.read(exchange.query)
                shown = document(await self._get(tenant.id, name), tenant)
            case _, [name, "events"]:
                shown = await self._events(exchange, tenant, name)
            case _, [name, _]:
                shown = await self._checkpoints(exchange, tenant, name)
            case _:
                raise AssertionError(rest)
        await exchange.respond(200, _encode(shown))

    # ── to ask for one ───────────────────────────────────────────────────────────────────

    async def _create(self, exchange: Exchange, caller: Caller, tenant: Tenant) -> Tuning:
        asked = decode(_CREATE, await exchange.read_body(), only_empty=frozenset())
        method = _method(asked)
        training = await self._file(tenant.id, asked.training_file, "training_file")
        validation = None
        if asked.validation_file is not None:
            validation = await self._file(tenant.id, asked.validation_file, "validation_file")
        tuning_id = new_id()

        def add(tx: Tx) -> Tuning | Failure:
            now = self._files.now()
            if store.count_open(tx, tenant.id) >= _MOST_OPEN:
                return Failure(
                    Kind.NO_ROOM,
                    f"{_MOST_OPEN} fine-tuning jobs of this tenant have not ended: wait for one",
                )
            try:
                model = catalogue.get(tx, asked.model, tenant_id=tenant.id)
            except NotFound:
                return _no_model(f"The model {asked.model[:100]!r} does not exist here")
            if (why := catalogue.why_not_tuned(tx, model)) is not None:
                return _no_model(f"The model cannot be fine-tuned: {why}")
            price = market.find_price(tx, training_sku(model.name))
            if price is None:
                return _no_model(
                    f"The model {model.name!r} cannot be fine-tuned: trained tokens have no price"
                )
            new = store.New(
                id=tuning_id, tenant_id=tenant.id, api_key_id=caller.key_id, base=model.name,
                suffix=asked.suffix or "", training_file=training.id,
                validation_file=None if validation is None else validation.id, method=method,
                metadata=asked.metadata or {}, price_id=price.id,
            )  # fmt: skip
            for file in (training, validation):
                if file is not None:
                    stored.keep_until(tx, file.id, now + LONGEST + _MARGIN)
            return store.add(tx, new, now=now)

        made = await self._files.transact(add)
        if isinstance(made, Failure):
            raise made
        return made

    async def _file(self, tenant_id: UUID, name: str, param: str) -> StoredFile:
        try:
            file = await self._files.get(tenant_id, name)
        except Failure as failure:
            raise Failure(Kind.INVALID, failure.message, param=param) from None
        if file.purpose is not Purpose.FINE_TUNE:
            raise Failure(
                Kind.INVALID,
                f"file {name!r} has the purpose {file.purpose!r}: fine-tuning reads those with"
                f" {Purpose.FINE_TUNE!r}",
                param=param,
            )
        return file

    async def _cancel(self, tenant_id: UUID, name: str) -> Tuning:
        tuning = await self._get(tenant_id, name)

        def cancel(tx: Tx) -> bool:
            store.ask_cancel(tx, tuning.id, now=self._files.now())
            return store.get(tx, tuning.id).state in OPEN

        if not await self._files.transact(cancel):
            raise Failure(
                Kind.CONFLICT, f"fine-tuning job {name} has ended: it is {tuning.state}", param="id"
            )
        return await self._get(tenant_id, name)

    # ── to look at one ───────────────────────────────────────────────────────────────────

    async def _get(self, tenant_id: UUID, name: str) -> Tuning:
        tuning_id = JOB.id_of(name)
        try:
            return await self._files.transact(
                lambda tx: store.get(tx, tuning_id, tenant_id=tenant_id)
            )
        except NotFound:
            raise JOB.missing(name) from None

    async def _list(self, exchange: Exchange, tenant: Tenant) -> dict[str, object]:
        known = [name for name in _names(exchange.query) if name.startswith("metadata[")]
        query = Query.read(exchange.query, "after", "limit", *known)
        limit = query.limit(default=20, most=100)
        after = query.given.get("after")
        after_id = None if after is None else (await self._get(tenant.id, after)).id
        wanted = {name[len("metadata[") : -1]: query.given[name] for name in known} or None
        found = await self._files.transact(
            lambda tx: store.list_of(
                tx, tenant.id, limit=limit + 1, after=after_id, metadata=wanted
            )
        )
        return _page([document(tuning, tenant) for tuning in found], limit)

    async def _events(self, exchange: Exchange, tenant: Tenant, name: str) -> dict[str, object]:
        query = Query.read(exchange.query, "after", "limit")
        limit = query.limit(default=20, most=100)
        tuning = await self._get(tenant.id, name)
        after = query.given.get("after")
        after_id = None if after is None else _EVENT.id_of(after)
        found = await self._files.transact(
            lambda tx: store.list_events(tx, tuning.id, limit=limit + 1, after=after_id)
        )
        return _page([_event(event) for event in found], limit)

    async def _checkpoints(
        self, exchange: Exchange, tenant: Tenant, name: str
    ) -> dict[str, object]:
        query = Query.read(exchange.query, "after", "limit")
        limit = query.limit(default=10, most=100)
        tuning = await self._get(tenant.id, name)
        every = await self._files.transact(lambda tx: store.list_checkpoints(tx, tuning.id))
        found = [one for one in every if one.epoch is not None][:MOST_CHECKPOINTS]
        if (after := query.given.get("after")) is not None:
            edge = _CHECKPOINT.id_of(after)
            places = [place for place, one in enumerate(found) if one.artefact_id == edge]
            if not places:
                raise _CHECKPOINT.missing(after)
            found = found[places[0] + 1 :]
        shown = [_checkpoint(tuning, tenant, one) for one in found]
        page = _page(shown, limit)
        ids = [one["id"] for one in shown[:limit]] or [None]
        return page | {"first_id": ids[0], "last_id": ids[-1]}


def document(tuning: Tuning, tenant: Tenant) -> dict[str, object]:
    method = tuning.method
    hyperparameters = {
        "n_epochs": method.epochs,
        "batch_size": method.batch_size,
        "learning_rate_multiplier": method.learning_rate / _RATE,
    }
    error = tuning.error
    return {
        "id": JOB.of(tuning.id),
        "object": "fine_tuning.job",
        "model": tuning.base,
        "created_at": _seconds(tuning.created_at),
        "finished_at": None if tuning.ended_at is None else _seconds(tuning.ended_at),
        "fine_tuned_model": tuning.model,
        "organization_id": str(tenant.id),
        "status": _STATUS.get(tuning.state, tuning.state.value),
        "training_file": file_words.NAME.of(tuning.training_file),
        "validation_file": None
        if tuning.validation_file is None
        else file_words.NAME.of(tuning.validation_file),
        "result_files": [],
        "trained_tokens": tuning.tokens if tuning.state is State.SUCCEEDED else None,
        "error": None
        if error is None
        else {"code": error.code, "message": error.message, "param": error.param},
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "seed": method.seed,
        "estimated_finish": None,
        "integrations": [],
        "metadata": tuning.metadata,
        "user_provided_suffix": tuning.suffix or None,
    }


def _event(event: Event) -> dict[str, object]:
    return {
        "id": _EVENT.of(event.id),
        "object": "fine_tuning.job.event",
        "created_at": _seconds(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": "message" if event.data is None else "metrics",
        "data": event.data or {},
    }


def _checkpoint(tuning: Tuning, tenant: Tenant, one: Checkpoint) -> dict[str, object]:
    step = None if one.step == tuning.steps else one.step
    metrics = one.metrics
    shown = {
        "step": one.step,
        "train_loss": metrics.get("train_loss"),
        "train_mean_token_accuracy": metrics.get("train_accuracy"),
        "full_valid_loss": metrics.get("valid_loss"),
        "full_valid_mean_token_accuracy": metrics.get("valid_accuracy"),
    }
    return {
        "id": _CHECKPOINT.of(one.artefact_id),
        "object": "fine_tuning.job.checkpoint",
        "created_at": _seconds(one.happened_at),
        "fine_tuned_model_checkpoint": full_name(tenant, own_name(tuning, step=step)),
        "fine_tuning_job_id": JOB.of(tuning.id),
        "metrics": {name: value for name, value in shown.items() if value is not None},
        "step_number": one.step,
    }


def _method(asked: _Create) -> Method:
    given = asked.hyperparameters
    if asked.method is not None and asked.method.supervised is not None:
        inner = asked.method.supervised.hyperparameters
        if given is not None and inner is not None:
            raise Failure(
                Kind.INVALID,
                "send hyperparameters in 'method' or beside it, not both",
                param="hyperparameters",
            )
        given = inner or given
    given = given or _Hyperparameters()
    epochs, size, times = given.n_epochs, given.batch_size, given.learning_rate_multiplier
    tuning_seed = new_id().int % 2**31 if asked.seed is None else asked.seed
    return Method(
        epochs=_EPOCHS if isinstance(epochs, str) else epochs,
        batch_size=_BATCH if isinstance(size, str) else size,
        learning_rate=_RATE * (1.0 if isinstance(times, str) else times),
        seed=tuning_seed,
    )


def _no_model(why: str) -> Failure:
    return Failure(Kind.INVALID, why, param="model")


def _reader(tx: Tx, file_id: UUID) -> str | None:
    found = store.find_reader(tx, file_id)
    return None if found is None else f"fine-tuning job {JOB.of(found)}"


def _page(shown: list[dict[str, object]], limit: int) -> dict[str, object]:
    return {"object": "list", "data": shown[:limit], "has_more": len(shown) > limit}


def _names(query: bytes) -> list[str]:
    return [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]


def _seconds(instant: datetime) -> int:
    return int(instant.timestamp())
