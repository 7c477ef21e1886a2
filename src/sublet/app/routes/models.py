"""The catalogue: models of the house and of tenants, their weights, and how they are served."""

import base64
import binascii
from datetime import timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import Field

from sublet.app.bootstrap import get_house
from sublet.app.documents import Body as Document
from sublet.app.documents import Text
from sublet.app.http import AnyCaller, Operator, Ours
from sublet.app.idempotency import OneCall
from sublet.app.imports import opens
from sublet.app.routes.operations import deployment_document
from sublet.core.db import Tx
from sublet.core.errors import Invalid, NotFound, Refused, Unauthorized
from sublet.core.money import NANOS
from sublet.market.price import Tier
from sublet.models import artefacts, catalogue, earnings, serving, store
from sublet.models.artefact import Artefact, File, Origin, State
from sublet.models.chest import PART_BYTES, count_parts
from sublet.models.deployment import Scaling
from sublet.models.measuring import measure
from sublet.models.model import Asked, Model, space_of
from sublet.models.s3 import Secret
from sublet.tenants import store as tenants
from sublet.tenants.tenant import Caller, Tenant, TenantId

router = APIRouter(prefix="/v1")

_SHOWN_PARTS = 1_000  # of what is missing, on one page

Hex256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256, in hex")]


class UploadFile(Document):
    path: Annotated[Text, Field(max_length=600)]
    bytes: Annotated[int, Field(ge=1, le=1 << 42, strict=True)]
    sha256: Hex256 | None = Field(None, description="Of the whole file, if it is known")


class FromUpload(Document):
    kind: Literal["upload"]
    files: Annotated[list[UploadFile], Field(min_length=1, max_length=1000)]


class FromPath(Document):
    kind: Literal["path"]
    path: Annotated[Text, Field(min_length=1, max_length=1000)] = Field(
        description="Beneath your folder in the one that the operator opened for imports"
    )


class FromS3(Document):
    kind: Literal["s3"]
    endpoint: Annotated[Text, Field(min_length=8, max_length=300)] = Field(
        examples=["https://s3.eu-central-1.amazonaws.com"],
        description="One that this instance's operator allows",
    )
    bucket: Annotated[Text, Field(min_length=3, max_length=63)]
    prefix: Annotated[Text, Field(max_length=1000)] = Field(
        "", description="Of the objects, or the key of the only one"
    )
    region: Annotated[Text, Field(min_length=1, max_length=40)] = "us-east-1"
    access_key_id: Annotated[Text, Field(min_length=1, max_length=200)] | None = None
    secret_access_key: Annotated[Text, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Kept sealed, and only until all is fetched"
    )
    session_token: Annotated[Text, Field(min_length=1, max_length=4000)] | None = None


class NewModel(Document):
    name: Annotated[Text, Field(min_length=1, max_length=63)] = Field(
        description="A tenant's models are called TENANT/NAME"
    )
    title: Annotated[Text, Field(max_length=200)] = ""
    licence: Annotated[Text, Field(min_length=1, max_length=200)] = Field(
        description="Under which terms it may be served; you answer for it"
    )
    licence_url: Annotated[Text, Field(max_length=500)] = ""
    source: Annotated[FromUpload | FromPath | FromS3, Field(discriminator="kind")]
    recipe: Annotated[Text, Field(max_length=100)] | None = Field(
        None, description="How it is served; without it the first that can: GET /v1/recipes"
    )
    context_tokens: Annotated[int, Field(ge=1, le=1 << 24, strict=True)] | None = None
    chat_template: Annotated[Text, Field(max_length=65_536)] = Field(
        "", description="Jinja; without it the weights' own"
    )
    tenant_id: UUID | None = Field(
        None, description="Whose it is: the operator alone says it; without it the house's"
    )


class NewDeployment(Document):
    min_replicas: Annotated[int, Field(ge=0, le=10_000, strict=True)] = 0
    max_replicas: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1
    tier: Literal["interruptible", "on_demand"] = "interruptible"
    outstanding_tokens: Annotated[int, Field(ge=1, le=1 << 30, strict=True)] = 4096
    first_token_ms: Annotated[int, Field(ge=1, le=600_000, strict=True)] = 2000
    idle_seconds: Annotated[int, Field(ge=1, le=30 * 86_400, strict=True)] = 300


@router.get("/recipes", tags=["models"])
def list_recipes(ours: Ours, _: AnyCaller) -> dict[str, Any]:
    """List the serving recipes: how an engine serves whatever model is brought."""
    own = ours.config.recipes
    return {
        "items": [
            {
                "name": one.name,
                "title": one.title,
                "engine": one.engine,
                "formats": list(one.formats),
                "architectures": list(one.architectures),
                "gpus": one.gpus,
                "memory_bytes": one.memory_bytes,
                "context_tokens": one.context_tokens,
                "slots": one.slots,
                "input_usd": one.price.input,
                "output_usd": one.price.output,
            }
            for one in (serving.load(name, own=own) for name in serving.available(own))
        ]
    }


@router.get("/models", tags=["models"])
def list_models(ours: Ours, caller: AnyCaller) -> dict[str, Any]:
    """List a tenant's own models; for the operator, everybody's."""
    with ours.db.transaction() as tx:
        found = catalogue.list_models(tx, tenant_id=_tenant_id(caller))
        return {"items": [_document(tx, model) for model in found]}


@router.post("/models", tags=["models"], status_code=201)
def bring_model(ours: Ours, caller: AnyCaller, body: NewModel, call: OneCall) -> dict[str, Any]:
    """Bring a model: upload its files afterwards, part by part, or have them fetched.

    It is private to its tenant, and sealed at rest. It can be deployed once its state is `ready`.
    """

    def effect(tx: Tx) -> dict[str, Any]:
        owner = _owner(tx, caller, body.tenant_id)
        origin, source, files, secret = _source(
            owner, body.source, is_operator=caller.tenant is None
        )
        if origin is not Origin.UPLOAD:  # say now what will never go
            opens(ours.config, ours.clock)[origin](source, secret).close()
        new = catalogue.New(
            name=body.name,
            title=body.title or body.name,
            licence=body.licence,
            licence_url=body.licence_url,
            asked=Asked(recipe=body.recipe, context_tokens=body.context_tokens),
            chat_template=body.chat_template,
            origin=origin,
            source=source,
            secret=secret,
            files=files,
        )
        model = catalogue.bring(tx, owner, new, shelf=ours.shelf, now=ours.clock.now())
        return _document(tx, model)

    return call.run(body, effect)


@router.put("/models/{name:path}/parts", tags=["models"])
def upload_part(
    ours: Ours,
    caller: AnyCaller,
    name: str,
    file: Annotated[str, Query(max_length=600)],
    part: Annotated[int, Query(ge=0, le=1 << 20)],
    sha256: Annotated[str, Query(pattern="^[0-9a-f]{64}$")],
    body: Annotated[bytes, Body(media_type="application/octet-stream")],
) -> dict[str, Any]:
    """Send one part of a file: all but the last have `upload.part_bytes`. Safe to send again."""
    with ours.db.transaction() as tx:
        artefact = _artefact(tx, catalogue.get(tx, name, tenant_id=_tenant_id(caller)), caller)
    with ours.db.transaction() as tx:
        catalogue.put_part(
            tx, artefact, path=file, part=part, body=body, sha256=bytes.fromhex(sha256),
            shelf=ours.shelf,
        )  # fmt: skip
    return {"file": file, "part": part, "received": True}


@router.post("/models/{name:path}/complete", tags=["models"])
def complete_upload(ours: Ours, caller: AnyCaller, name: str, call: OneCall) -> dict[str, Any]:
    """Say that all parts are sent. What is missing is named; else the files are read next."""

    def complete(tx: Tx) -> dict[str, Any]:
        model = catalogue.owned(tx, name, tenant_id=_tenant_id(caller))
        artefact = _artefact(tx, model, caller, lock=True)
        if artefact.state is State.RECEIVING:  # sent again, it is on its way already
            catalogue.complete(tx, artefact, now=ours.clock.now())
        return _document(tx, model)

    return call.run(Document(), complete)


@router.put("/models/{name:path}/deployment", tags=["models"])
def deploy_model(ours: Ours, caller: AnyCaller, name: str, body: NewDeployment) -> dict[str, Any]:
    """Serve a model, or change how its replicas are scaled.

    With `min_replicas` 0 it has none until somebody asks, and none again after `idle_seconds`
    without a request. What is kept up for a tenant's own model is the operator's to say.
    """
    with ours.db.transaction() as tx:
        model = catalogue.owned(tx, name, tenant_id=_tenant_id(caller))
        if caller.tenant is not None and body.min_replicas:
            raise Invalid(
                "min_replicas must be 0: a replica that waits for requests costs whether they come"
                " or not; ask the operator to keep one up"
            )
        scaling = Scaling(
            min_replicas=body.min_replicas,
            max_replicas=body.max_replicas,
            tier=Tier(body.tier),
            outstanding_tokens=body.outstanding_tokens,
            first_token_ms=body.first_token_ms,
            idle_seconds=body.idle_seconds,
        )
        catalogue.deploy(tx, model, scaling, now=ours.clock.now())
        document = _document(tx, model)
    ours.wake()
    return document


@router.delete("/models/{name:path}/deployment", tags=["models"])
def undeploy_model(ours: Ours, caller: AnyCaller, name: str) -> dict[str, Any]:
    """Serve a model no longer; requests under way are finished."""
    with ours.db.transaction() as tx:
        model = catalogue.owned(tx, name, tenant_id=_tenant_id(caller))
        store.set_wanted(tx, model.name, wanted=False)
        document = _document(tx, model)
    ours.wake()
    return document


@router.get("/models/{name:path}", tags=["models"])
def get_model(ours: Ours, caller: AnyCaller, name: str) -> dict[str, Any]:
    """Show a model: its state, what its weights are, and of an upload what is missing."""
    with ours.db.transaction() as tx:
        model = catalogue.get(tx, name, tenant_id=_tenant_id(caller))
        return _document(tx, model, whole=True)


@router.delete("/models/{name:path}", tags=["models"])
def delete_model(ours: Ours, caller: AnyCaller, name: str) -> dict[str, Any]:
    """Delete a model for good: it is served no longer, its key is destroyed, its parts removed."""
    with ours.db.transaction() as tx:
        model = catalogue.owned(tx, name, tenant_id=_tenant_id(caller))
        catalogue.delete(tx, model, now=ours.clock.now())
    ours.wake()
    return {"name": model.name, "deleted": True}


@router.get("/replicas/{replica_id}/weights-key", tags=["models"], include_in_schema=False)
def give_weights_key(ours: Ours, replica_id: UUID, request: Request) -> dict[str, Any]:
    """Give a replica that loads the key of its sealed weights, for the secret that it was given."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthorized("a replica shows its secret")
    with ours.db.transaction() as tx:
        artefact = catalogue.artefact_of_replica(tx, replica_id, secret)
    return {"key": base64.b64encode(artefacts.open_key(artefact, ours.vault)).decode()}


@router.get("/replicas/{replica_id}/adapters", tags=["models"], include_in_schema=False)
def give_adapters(ours: Ours, replica_id: UUID, request: Request) -> Response:
    """Tell a replica what it is to serve on top of its model, for the secret that it was given."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthorized("a replica shows its secret")
    with ours.db.transaction() as tx:
        found = catalogue.adapters_of(tx, replica_id, secret, vault=ours.vault)
    return Response(msgspec.json.encode({"adapters": found}), media_type="application/json")


@router.post("/models/{name:path}/measure", tags=["models"])
def measure_model(ours: Ours, _: Operator, name: str, call: OneCall) -> dict[str, Any]:
    """Measure how many tokens a second one replica makes with its slots full. Takes seconds."""
    if (said := call.replay(Document())) is not None:
        return said
    with ours.db.transaction() as tx:
        model = catalogue.get(tx, name, tenant_id=None)
        replicas = [one for one in store.list_live_replicas(tx) if one.deployment == name]
    if model.recipe is None:
        raise Refused(f"{model.name} has no recipe yet")
    measured = measure(replicas, slots=model.recipe.slots)

    def keep(tx: Tx) -> dict[str, Any]:
        catalogue.set_measured(tx, name, measured, now=ours.clock.now())
        return _document(tx, catalogue.get(tx, name, tenant_id=None))

    return call.run(Document(), keep)


@router.get("/economics", tags=["models"])
def show_economics(
    ours: Ours, _: Operator, hours: Annotated[int, Query(ge=1, le=24 * 31)] = 24
) -> dict[str, Any]:
    """Say what each deployment cost and earned lately, and what leases would have paid."""
    now = ours.clock.now()
    with ours.db.transaction() as tx:
        found = earnings.report(tx, since=now - timedelta(hours=hours), now=now)
    return {"hours": hours, "items": [_economics(one) for one in found]}


def _economics(one: earnings.Report) -> dict[str, Any]:
    seen, rates, weighed = one.seen, one.rates, one.economics

    def usd(nanos: float | None) -> str | None:
        return None if nanos is None else f"{nanos / NANOS:.6f}"

    def share(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "model": one.deployment.name,
        "pool": one.pool,
        "gpus": seen.gpus,
        "gpu_hours": round(seen.gpu_hours, 4),
        "requests": seen.requests,
        "input_tokens": seen.input_tokens,
        "output_tokens": seen.output_tokens,
        "tokens_per_second": seen.tokens_per_second,
        "load": share(weighed.load),
        "revenue_usd": usd(seen.revenue_nanos),
        "cost_usd": usd(weighed.cost_nanos),
        "margin": share(weighed.margin),
        "cost_usd_per_million": usd(weighed.cost_nanos_per_million),
        "revenue_usd_per_gpu_hour": usd(weighed.revenue_nanos_per_gpu_hour),
        "full_usd_per_gpu_hour": usd(weighed.full_nanos_per_gpu_hour),
        "rental_usd_per_gpu_hour": usd(rates.rental_nanos),
        "gpu_hour_cost_usd": usd(rates.cost_nanos),
        "bid_usd_per_gpu_hour": usd(rates.bid_nanos),
        "break_even_load": share(weighed.break_even_load),
        "output_floor_usd_per_million": usd(weighed.floor_nanos_per_million),
        "output_floor_today_usd_per_million": usd(weighed.floor_today_nanos_per_million),
    }


def _tenant_id(caller: Caller) -> TenantId | None:
    return None if caller.tenant is None else caller.tenant.id


def _owner(tx: Tx, caller: Caller, tenant_id: UUID | None) -> Tenant:
    if caller.tenant is not None:
        if tenant_id not in (None, caller.tenant.id):
            raise Invalid("tenant_id: a tenant brings models of its own alone")
        return caller.tenant
    if tenant_id is not None:
        return tenants.get_tenant(tx, TenantId(tenant_id))
    return get_house(tx)


def _source(
    owner: Tenant, source: FromUpload | FromPath | FromS3, *, is_operator: bool
) -> tuple[Origin, dict[str, str], list[File], str | None]:
    """Return where a model comes from, which files if that is known, and the secret for it."""
    match source:
        case FromUpload():
            files = [
                File(
                    number=number,
                    path=file.path,
                    size=file.bytes,
                    sha256=None if file.sha256 is None else binascii.unhexlify(file.sha256),
                )
                for number, file in enumerate(source.files)
            ]
            return Origin.UPLOAD, {}, files, None
        case FromPath():
            path = source.path if is_operator else f"{space_of(owner)}/{source.path}"
            return Origin.PATH, {"path": path}, [], None
        case FromS3():
            if (source.access_key_id is None) != (source.secret_access_key is None):
                raise Invalid("access_key_id and secret_access_key go together")
            where = {
                "endpoint": source.endpoint, "bucket": source.bucket, "prefix": source.prefix,
                "region": source.region,
            }  # fmt: skip
            secret = None
            if source.access_key_id is not None and source.secret_access_key is not None:
                secret = msgspec.json.encode(
                    Secret(
                        access_key_id=source.access_key_id,
                        secret_access_key=source.secret_access_key,
                        session_token=source.session_token,
                    )
                ).decode()
            return Origin.S3, where, [], secret


def _artefact(tx: Tx, model: Model, caller: Caller, *, lock: bool = False) -> Artefact:
    tenant_id = _tenant_id(caller)
    if model.artefact_id is None or (tenant_id is not None and model.owner_id != tenant_id):
        raise NotFound(f"nothing is uploaded to {model.name[:200]!r}")
    return artefacts.get(tx, model.artefact_id, lock=lock)


def _document(tx: Tx, model: Model, *, whole: bool = False) -> dict[str, Any]:
    artefact = None if model.artefact_id is None else artefacts.get(tx, model.artefact_id)
    deployment = next((one for one in store.list_deployments(tx) if one.name == model.name), None)
    recipe = model.recipe
    facts = None if artefact is None else artefact.facts
    document: dict[str, Any] = {
        "name": model.name,
        "title": model.title,
        "tenant_id": model.owner_id,
        "state": State.READY if artefact is None else artefact.state,
        "detail": None if artefact is None else artefact.detail,
        "licence": model.licence,
        "licence_url": model.licence_url,
        "base": model.base,
        "recipe": model.recipe_name or None,
        "engine": None if recipe is None else recipe.engine,
        "gpus": None if recipe is None else recipe.gpus,
        "context_tokens": None if recipe is None else recipe.context_tokens,
        "tokens_per_second": model.tokens_per_second,
        "measured_at": model.measured_at,
        "format": None if facts is None else facts.format,
        "architecture": None if facts is None else facts.architecture,
        "parameters": None if facts is None else facts.parameters,
        "bytes": None if artefact is None else artefact.size,
        "deployment": None if deployment is None else deployment_document(tx, deployment),
        "created_at": model.created_at,
    }
    if whole and artefact is not None:
        document["files"] = [
            {
                "path": file.path,
                "bytes": file.size,
                "sha256": None if file.sha256 is None else file.sha256.hex(),
            }
            for file in artefact.files
        ]
        if artefact.state is State.RECEIVING and artefact.origin is Origin.UPLOAD:
            document["upload"] = _upload(tx, artefact)
    elif artefact is not None and artefact.state is State.RECEIVING:
        document["upload"] = {"part_bytes": PART_BYTES}
    return document


def _upload(tx: Tx, artefact: Artefact) -> dict[str, Any]:
    missing = artefacts.missing_parts(tx, artefact)
    paths = {file.number: file.path for file in artefact.files}
    shown = [
        {"file": paths[number], "part": part} for number, parts in missing.items() for part in parts
    ]
    return {
        "part_bytes": PART_BYTES,
        "parts": sum(count_parts(file.size) for file in artefact.files),
        "missing": len(shown),
        "next": shown[:_SHOWN_PARTS],
    }
