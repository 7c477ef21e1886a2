"""The reading part of Bedrock's control plane: what is sold, as foundation models.

Each model is also a system-defined inference profile, `global.NAME`: AWS's way to name a model
that is served from wherever there is room, which is how all models are served here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, unquote

import msgspec

from sublet.gateway import bedrock
from sublet.gateway.failures import Failure, Kind
from sublet.gateway.table import Offer, Table

_encode: Final = msgspec.json.Encoder().encode
_MODELS: Final = "/foundation-models"
_PROFILES: Final = "/inference-profiles"
_REGION: Final = "local"  # of ARNs: one fleet is one region
_ACCOUNT: Final = "000000000000"
_PROFILE: Final = "global."
_EPOCH: Final = "1970-01-01T00:00:00Z"
_MOST: Final = 1000  # profiles on a page


@dataclass(frozen=True, slots=True)
class _Filter:
    """A parameter of the query: what it may be, and which of these every model here has."""

    allowed: frozenset[str] | None  # None: anything
    ours: frozenset[str]


_MODEL_FILTERS: Final[Mapping[str, _Filter]] = MappingProxyType(
    {
        "byProvider": _Filter(None, frozenset({"sublet"})),
        "byCustomizationType": _Filter(
            frozenset({"FINE_TUNING", "CONTINUED_PRE_TRAINING", "DISTILLATION"}), frozenset()
        ),
        "byOutputModality": _Filter(frozenset({"TEXT", "IMAGE", "EMBEDDING"}), frozenset({"TEXT"})),
        "byInferenceType": _Filter(
            frozenset({"ON_DEMAND", "PROVISIONED"}), frozenset({"ON_DEMAND"})
        ),
    }
)
_PROFILE_FILTERS: Final[Mapping[str, _Filter]] = MappingProxyType(
    {
        "type": _Filter(
            frozenset({"SYSTEM_DEFINED", "APPLICATION"}), frozenset({"SYSTEM_DEFINED"})
        ),
        "maxResults": _Filter(None, frozenset()),
        "nextToken": _Filter(None, frozenset()),
    }
)


def has(path: str) -> bool:
    """Say whether a path is one of these calls."""
    return any(path == list_ or path.startswith(list_ + "/") for list_ in (_MODELS, _PROFILES))


def answer(path: str, query: bytes, table: Table) -> bytes:
    """Return what a call is answered with.

    Args:
        path: with its escapes undone.
        query: as on the wire.
        table: what is sold.

    Raises:
        Failure: nothing of this name is sold, or the query asks for what there is not.
    """
    asked = _read(query)
    sold = [offer for offer in table.offers.values() if offer.sold]
    if path == _MODELS:
        chosen = _chosen(asked, _MODEL_FILTERS, sold)
        return _encode({"modelSummaries": [_model(offer) for offer in chosen]})
    if path == _PROFILES:
        return _profiles(asked, sold)
    _chosen(asked, {}, sold)
    if path.startswith(_MODELS + "/"):
        offer = _find(path.removeprefix(_MODELS + "/"), table)
        return _encode({"modelDetails": _model(offer)})
    return _encode(_profile(_find(path.removeprefix(_PROFILES + "/"), table)))


def _read(query: bytes) -> dict[str, str]:
    asked: dict[str, str] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in asked:
            raise Failure(Kind.INVALID, f"{name[:100]!r} is there twice", param=name[:100])
        asked[name] = value
    return asked


def _chosen(
    asked: Mapping[str, str], filters: Mapping[str, _Filter], sold: list[Offer]
) -> list[Offer]:
    for name, value in asked.items():
        if (known := filters.get(name)) is None:
            raise Failure(
                Kind.UNSUPPORTED,
                f"Unknown or unsupported parameter: {name[:100]!r}",
                param=name[:100],
            )
        if known.allowed is not None and value not in known.allowed:
            told = ", ".join(sorted(known.allowed))
            raise Failure(Kind.INVALID, f"{name} must be one of {told}", param=name)
        if known.ours and value.lower() not in {ours.lower() for ours in known.ours}:
            sold = []
        if known.allowed is not None and not known.ours:
            sold = []
    return sold


def _profiles(asked: Mapping[str, str], sold: list[Offer]) -> bytes:
    chosen = _chosen(asked, _PROFILE_FILTERS, sold)
    size, start = asked.get("maxResults", str(_MOST)), asked.get("nextToken", "0")
    if not (_is_number(size) and 1 <= int(size) <= _MOST):
        raise Failure(Kind.INVALID, f"maxResults must lie in 1…{_MOST}", param="maxResults")
    if not _is_number(start):
        raise Failure(Kind.INVALID, "nextToken is not one that was given", param="nextToken")
    end = int(start) + int(size)
    page: dict[str, object] = {
        "inferenceProfileSummaries": [_profile(offer) for offer in chosen[int(start) : end]]
    }
    if end < len(chosen):
        page["nextToken"] = str(end)
    return _encode(page)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _find(identifier: str, table: Table) -> Offer:
    def known(name: str) -> bool:
        return (offer := table.offers.get(name)) is not None and offer.sold

    return table.find(bedrock.name_of(unquote(identifier), known))


def _model(offer: Offer) -> dict[str, object]:
    name = offer.deployment.name
    return {
        "modelArn": _arn(offer),
        "modelId": name,
        "modelName": name,
        "providerName": "Sublet",
        "inputModalities": ["TEXT"],
        "outputModalities": ["TEXT"],
        "responseStreamingSupported": True,
        "customizationsSupported": [],
        "inferenceTypesSupported": ["ON_DEMAND"],
        "modelLifecycle": {"status": "ACTIVE"},
    }


def _profile(offer: Offer) -> dict[str, object]:
    name = offer.deployment.name
    profile = _PROFILE + name
    return {
        "inferenceProfileName": profile,
        "description": f"{name}, on whichever replica has room",
        "createdAt": _EPOCH,  # AWS's field; nothing depends on it
        "updatedAt": _EPOCH,
        "inferenceProfileArn": f"arn:aws:bedrock:{_REGION}:{_ACCOUNT}:inference-profile/{profile}",
        "models": [{"modelArn": _arn(offer)}],
        "inferenceProfileId": profile,
        "status": "ACTIVE",
        "type": "SYSTEM_DEFINED",
    }


def _arn(offer: Offer) -> str:
    return f"arn:aws:bedrock:{_REGION}::foundation-model/{offer.deployment.name}"
