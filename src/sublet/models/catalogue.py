"""The catalogue: what models there are, whose they are, and what their owners do with them."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg.types.json import Json

from sublet.core.db import Tx, load_queries, one
from sublet.core.errors import Invalid, NotFound, Refused
from sublet.core.ids import new_id
from sublet.core.vault import Vault
from sublet.market import store as market
from sublet.market.price import cache_read_sku, input_sku, output_sku, training_sku
from sublet.models import artefacts, serving, store
from sublet.models.artefact import Artefact, File, Kind, Origin, State
from sublet.models.chest import Chest, Place, part_bytes
from sublet.models.deployment import Deployment, Feature, Scaling
from sublet.models.formats import layout
from sublet.models.formats.source import Facts
from sublet.models.model import Asked, Model, full_name
from sublet.models.replica import recipe as recipes
from sublet.models.replica.recipe import Adapter, Licence, Recipe, SealedFile, SealedWeights
from sublet.models.tuning import store as tunings
from sublet.tenants.tenant import Tenant, TenantKind

QUERIES: Final = load_queries("sublet.models", "catalogue.sql")
# Whose layers the trainer knows, as general.architecture has them.
TRAINED: Final = frozenset({"llama", "qwen2", "qwen3", "gemma3"})
MOST_REPLICAS: Final = 10_000


class _Serving(msgspec.Struct, frozen=True, kw_only=True):
    """The column `serving`."""

    recipe: Recipe | None = None
    asked: Asked = msgspec.field(default_factory=Asked)
    chat_template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """Where artefacts are kept, and what a tenant may keep."""

    chest: Chest
    vault: Vault
    most_bytes: int  # of one tenant
    recipes: Path | None = None  # the operator's own serving recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """A model that its owner brings."""

    name: str  # its own, without the tenant's
    title: str
    licence: str
    licence_url: str
    asked: Asked
    chat_template: str
    origin: Origin
    source: Mapping[str, str]
    secret: str | None  # that it is fetched with
    files: Sequence[File]  # of an upload; of others they are found


# ── what there is ────────────────────────────────────────────────────────────────────────


def offer(tx: Tx, recipe: Recipe, *, now: datetime) -> None:
    """Put a model of the house into the catalogue and offer it, at its list price if it has none."""
    tx.execute(
        QUERIES["put_model"],
        {
            "name": recipe.name, "owner_id": None, "title": recipe.title, "recipe": recipe.name,
            "serving": _serving(_Serving(recipe=recipe, chat_template=recipe.chat_template)),
            "artefact_id": None, "licence": recipe.licence.name, "licence_url": recipe.licence.url,
            "tokens_per_second": recipe.tokens_per_second, "now": now,
        },
    )  # fmt: skip
    _put_deployment(tx, recipe, owner_id=None, scaling=Scaling(), now=now)


def get(tx: Tx, name: str, *, tenant_id: UUID | None, lock: bool = False) -> Model:
    """Return a model that a tenant may see, or the operator (None): its own, and the house's.

    Raises:
        NotFound: there is none, or it is another tenant's: it is not told apart.
    """
    row = one(tx, QUERIES["lock_model" if lock else "get_model"], {"name": name})
    if row is None or (
        tenant_id is not None and row["owner_id"] is not None and row["owner_id"] != tenant_id
    ):
        raise NotFound(f"there is no model {name[:200]!r}")
    return _model(row)


def list_models(tx: Tx, *, tenant_id: UUID | None) -> list[Model]:
    """List a tenant's own models, or for the operator (None) all, without deleted ones."""
    row = {"everybody": tenant_id is None, "owner_id": tenant_id}
    return [_model(found) for found in tx.execute(QUERIES["list_models"], row).fetchall()]


def owned(tx: Tx, name: str, *, tenant_id: UUID | None) -> Model:
    """Return a model to change it, locked: its owner's alone, or the operator's.

    Raises:
        NotFound: there is none, or it is another tenant's.
        Refused: it is the house's, and a tenant asks; or it is deleted.
    """
    model = get(tx, name, tenant_id=tenant_id, lock=True)
    if tenant_id is not None and model.owner_id != tenant_id:
        raise Refused(f"{name[:200]!r} is the house's model: a tenant changes its own alone")
    if model.deleted_at is not None:
        raise Refused(f"{name[:200]!r} was deleted")
    return model


# ── what a tenant brings ─────────────────────────────────────────────────────────────────


def bring(tx: Tx, owner: Tenant, new: New, *, shelf: Shelf, now: datetime) -> Model:
    """Begin to take in a model of a tenant's own; the house's own are sold to all.

    Raises:
        Invalid: its name, or a file's, can be none; or its files make no model.
        NotFound: there is no serving recipe of the name that it asks for.
        Refused: there was a model of this name, or the tenant would keep too much.
    """
    is_house = owner.kind is TenantKind.HOUSE
    name = full_name(None if is_house else owner, new.name)
    if new.asked.recipe is not None:
        serving.load(new.asked.recipe, own=shelf.recipes)
    if new.origin is Origin.UPLOAD:
        layout.find_format([file.path for file in new.files])
    artefact_id = new_id()
    check_room(tx, owner.id, sum(file.size for file in new.files), shelf=shelf)
    artefacts.add(
        tx,
        artefact_id,
        tenant_id=owner.id,
        kind=Kind.WEIGHTS,
        origin=new.origin,
        source=new.source,
        secret=new.secret,
        files=new.files,
        vault=shelf.vault,
        now=now,
    )
    row = {
        "name": name, "owner_id": None if is_house else owner.id, "title": new.title,
        "recipe": new.asked.recipe or "",
        "serving": _serving(_Serving(asked=new.asked, chat_template=new.chat_template)),
        "artefact_id": artefact_id, "licence": new.licence, "licence_url": new.licence_url,
        "tokens_per_second": None, "now": now,
    }  # fmt: skip
    if one(tx, QUERIES["get_model"], {"name": name}) is not None:
        raise Refused(f"there is, or was, a model {name!r}: choose another name")
    tx.execute(QUERIES["put_model"], row)
    return get(tx, name, tenant_id=None)


def check_room(tx: Tx, tenant_id: UUID, size: int, *, shelf: Shelf) -> None:
    """Hold what a tenant wants to keep to its quota, and to what the disk has left.

    Raises:
        Refused: it is too much.
    """
    artefacts.check_quota(tx, tenant_id, more=size, most=shelf.most_bytes)
    if size > shelf.chest.free_bytes() * 0.95:
        raise Refused(f"the store has no room for {size} bytes; ask the operator")


def put_part(
    tx: Tx, artefact: Artefact, *, path: str, part: int, body: bytes, sha256: bytes, shelf: Shelf
) -> None:
    """Take in one part of an upload; the same again changes nothing.

    Raises:
        NotFound: the upload has no such file.
        Invalid: the part is not as long as it must be, or not what its digest says.
        Refused: nothing is uploaded to it any more.
        Unavailable: the store does not take it.
    """
    if artefact.state is not State.RECEIVING or artefact.origin is not Origin.UPLOAD:
        raise Refused(f"nothing is uploaded to it: it is {artefact.state}")
    file = next((file for file in artefact.files if file.path == path), None)
    if file is None:
        raise NotFound(f"the upload has no file {path[:150]!r}")
    wanted = part_bytes(file.size, part)
    if wanted <= 0:
        raise Invalid(f"{path} has no part {part}")
    if len(body) != wanted:
        raise Invalid(f"part {part} of {path} must have {wanted} bytes, not {len(body)}")
    if hashlib.sha256(body).digest() != sha256:
        raise Invalid(f"part {part} of {path} is not what its SHA-256 says: send it again")
    place = Place(artefact=artefact.id, file=file.number, part=part)
    shelf.chest.put(place, body, key=artefacts.open_key(artefact, shelf.vault))
    artefacts.put_part(tx, artefact.id, file=file.number, part=part, sha256=sha256)


def complete(tx: Tx, artefact: Artefact, *, now: datetime) -> None:
    """Say that all parts are sent: the files are read next.

    Raises:
        Refused: some are missing, or they are read already.
    """
    missing = artefacts.missing_parts(tx, artefact)
    if missing:
        count = sum(map(len, missing.values()))
        number, parts = next(iter(missing.items()))
        path = next(file.path for file in artefact.files if file.number == number)
        raise Refused(f"{count} parts are missing, such as part {parts[0]} of {path}")
    artefacts.move(tx, artefact, State.CHECKING, now=now, detail="its files are read")


def settle(tx: Tx, name: str, artefact: Artefact, facts: Facts, *, shelf: Shelf) -> None:
    """Note how a model is served whose weights were found sound.

    Raises:
        Invalid: no recipe serves it, or it is too large for the one that would.
    """
    model = get(tx, name, tenant_id=None, lock=True)
    if model.asked.recipe is None:
        chosen = serving.choose(facts, own=shelf.recipes)
    else:
        chosen = serving.load(model.asked.recipe, own=shelf.recipes)
    context_tokens = chosen.context_for(facts, model.asked.context_tokens)
    chosen.check(facts, context_tokens=context_tokens)
    sealed = SealedWeights(
        artefact=artefact.id,
        files=tuple(
            SealedFile(path=file.path, size=file.size, sha256=file.sha256.hex())
            for file in artefact.files
            if file.sha256 is not None
        ),
    )
    recipe = chosen.recipe(
        name=model.name,
        title=model.title,
        context_tokens=context_tokens,
        weights=sealed,
        licence=Licence(name=model.licence, url=model.licence_url),
        chat_template=model.chat_template,
    )
    told = _Serving(recipe=recipe, asked=model.asked, chat_template=model.chat_template)
    row = {"name": name, "recipe": chosen.name, "serving": _serving(told)}
    tx.execute(QUERIES["set_serving"], row)


def find_by_artefact(tx: Tx, artefact_id: UUID) -> str | None:
    row = one(tx, QUERIES["find_by_artefact"], {"id": artefact_id})
    return None if row is None else str(row["name"])


def delete(tx: Tx, model: Model, *, now: datetime) -> None:
    """Delete a model for good: its deployment ends, and the key of its weights is destroyed.

    Its parts are removed afterwards; without the key they are noise. Its name is not given again:
    what was charged for it names it.

    Raises:
        Refused: it came with Sublet, and has nothing to delete.
    """
    if model.artefact_id is None:
        raise Refused(f"{model.name} ships with Sublet: stop it instead (`sublet model stop`)")
    if one(tx, QUERIES["get_deployment"], {"name": model.name}) is not None:
        store.set_wanted(tx, model.name, wanted=False)
    artefact = artefacts.get(tx, model.artefact_id, lock=True)
    artefacts.move(tx, artefact, State.DELETED, now=now)
    tx.execute(QUERIES["delete_model"], {"name": model.name, "now": now})


# ── what is served ───────────────────────────────────────────────────────────────────────


def deploy(tx: Tx, model: Model, scaling: Scaling, *, now: datetime) -> Deployment:
    """Serve a model, or change how it is scaled.

    Raises:
        Invalid: the bounds cannot be.
        Refused: its weights are not there, or no good.
    """
    if not 0 <= scaling.min_replicas <= scaling.max_replicas <= MOST_REPLICAS:
        raise Invalid(
            f"min_replicas must lie in 0…max_replicas, and that in 1…{MOST_REPLICAS}, not"
            f" {scaling.min_replicas} and {scaling.max_replicas}"
        )
    if model.base is not None:
        raise Refused(f"{model.name} is served by the replicas of {model.base}: deploy that")
    if scaling.tier.drawn:
        raise Invalid(f"replicas run on interruptible or on_demand leases, not {scaling.tier}")
    if model.artefact_id is not None:
        artefact = artefacts.get(tx, model.artefact_id)
        if artefact.state is not State.READY:
            raise Refused(f"{model.name} is {artefact.state}: {artefact.detail or 'wait for it'}")
    if model.recipe is None:
        raise Refused(f"{model.name} has no recipe yet")
    _put_deployment(tx, model.recipe, owner_id=model.owner_id, scaling=scaling, now=now)
    store.set_scaling(tx, model.name, scaling)
    return store.set_wanted(tx, model.name, wanted=True)


def _put_deployment(
    tx: Tx, recipe: Recipe, *, owner_id: UUID | None, scaling: Scaling, now: datetime
) -> None:
    deployment = Deployment(
        name=recipe.name, recipe=recipe.name, context_tokens=recipe.context_tokens, wanted=True,
        features=frozenset(map(Feature, recipe.features)),
        temperature=recipe.sampling.temperature, top_p=recipe.sampling.top_p,
        owner_id=owner_id, scaling=scaling, target=scaling.min_replicas,
    )  # fmt: skip
    store.put_deployment(tx, deployment, now=now)
    prices = {
        input_sku(recipe.name): recipe.price.input,
        # Priced apart from the first day, so that a discount is a price and not a change of code.
        cache_read_sku(recipe.name): recipe.price.input,
        output_sku(recipe.name): recipe.price.output,
    }
    if recipe.price.training is not None:
        prices[training_sku(recipe.name)] = recipe.price.training
    for sku, usd in prices.items():
        if market.find_price(tx, sku) is None:
            market.set_price(tx, sku, market.usd_per_million(usd), now=now)


def why_not_tuned(tx: Tx, model: Model) -> str | None:
    """Say why nothing can be learnt on top of a model, or None."""
    if model.deleted_at is not None:
        return f"the model {model.name} was deleted"
    if model.base is not None:
        return f"{model.name} was fine-tuned itself: fine-tune {model.base}"
    if model.recipe is None:
        return f"{model.name} is not ready yet"
    if model.recipe.engine != "llama.cpp":
        return f"{model.name} is served by {model.recipe.engine}, which takes no adapters here"
    if model.artefact_id is not None:
        facts = artefacts.get(tx, model.artefact_id).facts
        if facts is not None and facts.architecture not in TRAINED:
            return (
                f"the architecture {facts.architecture} cannot be trained; these can:"
                f" {', '.join(sorted(TRAINED))}"
            )
    if one(tx, QUERIES["get_deployment"], {"name": model.name}) is None:
        return f"{model.name} is not deployed, so nothing could serve what comes of it"
    return None


def adapters_of(tx: Tx, replica_id: UUID, secret: str, *, vault: Vault) -> list[Adapter]:
    """Return what a replica is to serve on top of its model, for the secret that it was given.

    Raises:
        NotFound: there is no such replica, it leaves, or this is not its secret.
    """
    asker = tunings.find_adapted(tx, replica_id)
    if asker is None or not _same(asker[1], secret):
        raise NotFound("there is no such replica that serves")
    deployment, _ = asker
    found = []
    for learnt in tunings.list_adapters(tx):
        if learnt.base == deployment:
            artefact = artefacts.get(tx, learnt.artefact_id)
            file = artefact.files[0]
            assert file.sha256 is not None
            key = base64.b64encode(artefacts.open_key(artefact, vault)).decode()
            sealed = SealedFile(path=file.path, size=file.size, sha256=file.sha256.hex())
            found.append(Adapter(id=artefact.id, number=0, file=sealed, key=key))
    return found


def recipe_of(tx: Tx, deployment: Deployment) -> Recipe:
    """Return how a deployment is served.

    Raises:
        NotFound: nothing says it.
    """
    row = one(tx, QUERIES["get_model"], {"name": deployment.name})
    if row is not None and (found := _model(row).recipe) is not None:
        return found
    return recipes.load(deployment.recipe)  # of a deployment older than the catalogue


def set_measured(tx: Tx, name: str, tokens_per_second: float, *, now: datetime) -> None:
    """Note how many tokens a second one replica of a model makes with all slots at work."""
    row = {"name": name, "tokens_per_second": tokens_per_second, "now": now}
    tx.execute(QUERIES["set_measured"], row)


def artefact_of_replica(tx: Tx, replica_id: UUID, secret: str) -> Artefact:
    """Return the weights that a replica loads, if it is one that shows its secret.

    Raises:
        NotFound: there is no such replica, it is up already, or this is not its secret.
    """
    row = one(tx, QUERIES["find_key_asker"], {"id": replica_id})
    if row is None or not _same(row["secret"], secret):
        raise NotFound("there is no such replica that loads sealed weights")
    return artefacts.get(tx, row["artefact_id"])


def _same(one_: str, other: str) -> bool:
    return hashlib.sha256(one_.encode()).digest() == hashlib.sha256(other.encode()).digest()


def _serving(told: _Serving) -> Json:
    return Json(msgspec.to_builtins(told))


def _model(row: Mapping[str, Any]) -> Model:
    told = msgspec.convert(row["serving"], _Serving)
    return Model(
        name=row["name"],
        owner_id=row["owner_id"],
        title=row["title"],
        recipe_name=row["recipe"],
        recipe=told.recipe,
        chat_template=told.chat_template,
        asked=told.asked,
        artefact_id=row["artefact_id"],
        licence=row["licence"],
        licence_url=row["licence_url"],
        tokens_per_second=row["tokens_per_second"],
        measured_at=row["measured_at"],
        deleted_at=row["deleted_at"],
        created_at=row["created_at"],
        base=row["base"],
    )
