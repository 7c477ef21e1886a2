"""What this gateway sells just now: read whole from Postgres, several times a second.

While Postgres is away the last table stands: it says what was true, and no request is
served on it without a hold, which needs Postgres.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Self
from uuid import UUID

from sublet.core.db import Tx
from sublet.gateway.ask import PARAMETERS, Ask
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.routing import by_tier
from sublet.gateway.tariff import Tariff
from sublet.market import store as market
from sublet.market.price import Price, model_tier
from sublet.models import store as models
from sublet.models.deployment import Deployment, Feature, Replica, ReplicaState
from sublet.models.tuning import store as tunings
from sublet.models.tuning.store import Adapter

TIERS: Final = ("priority", "flex", "batch")
_DEFAULT: Final = "default"
_RECLAIMED = "reclaimed"  # a lease's end reason, which its replica's detail repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One deployment: its price, and who serves it."""

    deployment: Deployment
    tariff: Tariff | None
    ready: tuple[Replica, ...]
    last: Replica | None  # of one with nobody ready: why not
    warm_seconds: float | None = None  # that its last replicas took to be ready
    read_at: datetime | None = None  # when this was
    tiers: Mapping[str, Tariff] = field(default_factory=dict)  # beside the default one
    adapter: UUID | None = None  # what its replicas use on top of the model that they serve
    base: str | None = None  # that model

    @property
    def sold(self) -> bool:
        return self.deployment.wanted

    @property
    def state(self) -> str:
        """In a word, for the list of models."""
        if self.ready:
            return "ready"
        return self.last.state.value if self.last is not None else "waiting"

    def tariff_for(self, ask: Ask) -> Tariff:
        """As `tariff_of`, of the tier that is asked for."""
        return self.tariff_of(ask.service_tier or _DEFAULT)

    def tariff_of(self, tier: str) -> Tariff:
        """Return the prices of a tier.

        Raises:
            Failure: it has none, so nothing is sold in it.
        """
        if tier == _DEFAULT:
            if self.tariff is None:
                name = self.deployment.name
                raise Failure(Kind.NOT_READY, f"model {name!r} has no price yet")
            return self.tariff
        found = self.tiers.get(tier)
        if found is None:
            sold = ", ".join([_DEFAULT, *sorted(self.tiers)])
            raise Failure(
                Kind.UNSUPPORTED,
                f"Unsupported value of 'service_tier': model {self.deployment.name!r} has no price"
                f" for tier {tier!r}; it is sold in: {sold}",
                param="service_tier",
            )
        return found

    def check(self, ask: Ask) -> None:
        """Raises Failure: the model does not do all that is asked of it."""
        for feature in ask.features:
            if feature not in self.deployment.features:
                param = PARAMETERS[feature]
                raise Failure(
                    Kind.UNSUPPORTED,
                    f"Unsupported value of '{param}': model {self.deployment.name!r} does not do"
                    f" this ({feature}); GET /v1/models says what each model does",
                    param=param,
                )

    def complete(self, ask: Ask) -> Ask:
        """Return it with its adapter, and how the model samples where its answer says so."""
        if not ask.echo:
            return ask if self.adapter is None else replace(ask, adapter=self.adapter)
        own = {"temperature": self.deployment.temperature, "top_p": self.deployment.top_p}
        known = {
            name: 1.0 if value is None else value  # what everybody's default is
            for name, value in own.items()
            if ask.echo.get(name) is None
        }
        return replace(ask, echo={**ask.echo, **known}, adapter=self.adapter)

    def refusal(self) -> Failure:
        """Why there is nobody to send a request to."""
        name, last = self.deployment.name, self.last
        leaving = last is not None and last.state in (ReplicaState.DRAINING, ReplicaState.GONE)
        if last is not None and leaving and last.detail == _RECLAIMED:
            return Failure(
                Kind.RECLAIMED,
                f"internal jobs took the GPUs of model {name!r}; it returns when GPUs are idle",
            )
        if last is None:
            waits = "it waits for its first replica"
        elif leaving:
            waits = "its replica ended and the next has not started"
        else:
            waits = "its replica is starting"
        detail = f" ({last.detail})" if last is not None and last.detail else ""
        seconds = self._expected()
        told = "" if seconds is None else f"; expected in {seconds:.0f} seconds"
        return Failure(
            Kind.NOT_READY,
            f"model {name!r} is not ready: {waits}{detail}{told}",
            after_seconds=seconds,
        )

    def _expected(self) -> float | None:
        """Return in how many seconds it should take requests, from how long it took before."""
        if self.warm_seconds is None or self.read_at is None:
            return None
        last, waited = self.last, 0.0
        if last is not None and last.state is ReplicaState.STARTING and last.started_at is not None:
            waited = (self.read_at - last.started_at).total_seconds()
        # One that takes longer than the last ones may take as long again as it is late.
        left = self.warm_seconds - waited
        return max(1.0, left if left > 0 else -left)

    def nobody(self, ask: Ask) -> Failure:
        """Why none of those who are ready is to be asked."""
        if not self.ready:
            return self.refusal()
        name, tier = self.deployment.name, ask.service_tier
        if not by_tier(self.ready, tier):
            return Failure(
                Kind.NO_IDLE,
                f"tier {tier!r} of model {name!r} runs on idle capacity, and there is none just"
                " now: retry later, or ask for another tier",
            )
        return Failure(Kind.NOT_READY, f"model {name!r} is not ready: its replica does not answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    offers: Mapping[str, Offer] = field(default_factory=dict)
    private: Mapping[UUID, "Table"] = field(default_factory=dict)  # what an owner sees, beside all

    def seen_by(self, tenant_id: UUID | None) -> "Table":
        """Return what a tenant may know of and use: what is sold to all, and its own."""
        return self if tenant_id is None else self.private.get(tenant_id, self)

    def sells(self, name: str) -> bool:
        """Say whether anybody may be sold a model of this name."""
        every = (self, *self.private.values())
        return any(name in table.offers and table.offers[name].sold for table in every)

    def idle(self, name: str) -> list[Replica]:
        """Return who takes requests for a model from what is idle, whoever's it is."""
        for table in (self, *self.private.values()):
            if (offer := table.offers.get(name)) is not None:
                return list(by_tier(offer.ready, "batch"))
        return []

    def served_by(self) -> dict[str, str]:
        """Return {model: whose replicas serve it}, of those that have none of their own."""
        return {
            name: offer.base
            for table in self.private.values()
            for name, offer in table.offers.items()
            if offer.base is not None
        }

    def ready(self) -> list[Replica]:
        """Return who takes requests, of everybody's."""
        every = [*self.offers.values()]
        for table in self.private.values():
            every += [
                offer
                for name, offer in table.offers.items()
                if name not in self.offers and offer.base is None
            ]
        return [replica for offer in every for replica in offer.ready]

    @classmethod
    def read(cls, tx: Tx, *, now: datetime) -> Self:
        prices = {price.sku: price for price in market.list_prices(tx)}
        ready: dict[str, list[Replica]] = {}
        for replica in models.list_live_replicas(tx):
            if replica.state is ReplicaState.READY:
                ready.setdefault(replica.deployment, []).append(replica)
        warmups = models.list_warmups(tx)
        offers: dict[str, Offer] = {}
        owned: dict[UUID, dict[str, Offer]] = {}
        for deployment in models.list_deployments(tx):
            name = deployment.name
            up = tuple(ready.get(name, ()))
            theirs = deployment.owner_id
            into = offers if theirs is None else owned.setdefault(theirs, {})
            into[name] = Offer(
                deployment=deployment,
                tariff=Tariff.of(name, prices),
                tiers=_tiers(name, prices),
                ready=up,
                last=None if up else models.get_last_replica(tx, name),
                warm_seconds=warmups.get(name),
                read_at=now,
            )
        for learnt in tunings.list_adapters(tx):
            beside = owned.setdefault(learnt.owner_id, {})
            base = offers.get(learnt.base) or beside.get(learnt.base)
            if base is not None:
                beside[learnt.name] = _adapted(base, learnt, prices)
        private = {owner: cls(offers={**offers, **own}) for owner, own in owned.items()}
        return cls(offers=offers, private=private)

    def find(self, model: str) -> Offer:
        """Return what is sold under this name.

        Raises:
            Failure: nothing is.
        """
        offer = self.offers.get(model)
        if offer is None or not offer.sold:
            raise Failure(
                Kind.NO_SUCH_MODEL,
                f"The model {model[:100]!r} does not exist here: GET /v1/models lists what does",
                param="model",
            )
        return offer


def _tiers(name: str, prices: Mapping[str, Price]) -> dict[str, Tariff]:
    return {
        tier: tariff
        for tier in TIERS
        if (tariff := Tariff.of(model_tier(name, tier), prices)) is not None
    }


def _adapted(base: Offer, learnt: Adapter, prices: Mapping[str, Price]) -> Offer:
    """Return what was learnt on top of a model, served by those of its replicas that have it."""
    has = tuple(one for one in base.ready if learnt.artefact_id in one.adapters)
    last = base.last if not base.ready else base.ready[-1]
    return replace(
        base,
        deployment=replace(
            base.deployment,
            name=learnt.name,
            owner_id=learnt.owner_id,
            features=base.deployment.features - {Feature.EMBEDDINGS},
        ),
        tariff=Tariff.of(learnt.name, prices),
        tiers=_tiers(learnt.name, prices),
        ready=has,
        last=None if has else last,
        adapter=learnt.artefact_id,
        base=learnt.base,
    )
