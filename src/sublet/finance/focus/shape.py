"""What many charges have in common, in the words of FOCUS; and lines of invoices that are no usage."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from sublet.core.money import NANOS
from sublet.invoices.invoice import Line, describe

GPU_HOURS: Final = "GPU-Hours"
_MILLION_TOKENS: Final = "1000000 Tokens"
_TIERS: Final = {
    "interruptible": "Dynamic",  # the price moves with what is free
    "on_demand": "Standard",
    "reserved": "Standard",
    "contract": "Standard",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Charges of one price, key, pool, tier and model: a line of an invoice is of one shape."""

    sku: str
    rate_nanos: int
    rate_per: int
    key: str
    pool: str
    tier: str
    model: str
    price_id: str
    key_id: str
    tags: str  # as JSON

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what the queries of this room write, fields apart by U+001F."""
        sku, nanos, per, key, pool, tier, model, price, key_id, tags = text.split("\x1f")
        return cls(
            sku=sku, rate_nanos=int(nanos), rate_per=int(per), key=key, pool=pool, tier=tier,
            model=model, price_id=price, key_id=key_id, tags=tags,
        )  # fmt: skip

    def is_of(self, line: Line) -> bool:
        """Say whether charges of this shape are on that line of an invoice."""
        return line.what == "usage" and all(
            getattr(self, name) == getattr(line, name)
            for name in ("sku", "rate_nanos", "rate_per", "key", "pool", "tier", "model", "tags")
        )

    def columns(self) -> dict[str, str | None]:
        """Return the columns that follow from the shape alone."""
        return self._tokens() if self.model else self._gpus()

    def _tokens(self) -> dict[str, str | None]:
        what = self.sku.rpartition(":")[2].replace("_", " ")
        return self._common() | {
            "ChargeDescription": f"{self.model}: {what} tokens",
            "ServiceCategory": "AI and Machine Learning",
            "ServiceSubcategory": "Generative AI",
            "ServiceName": "Model inference",
            "PricingUnit": _MILLION_TOKENS,
            "ConsumedUnit": _MILLION_TOKENS,
            "PricingCategory": "Standard",
            "SkuId": self.sku,
            "SkuMeter": f"{what.title()} Tokens",
            "SkuPriceDetails": _json({"x_Model": self.model, "x_PriceId": self.price_id}),
            "ResourceName": self.model,
            "ResourceType": "Model",
        }

    def _gpus(self) -> dict[str, str | None]:
        tier = self.tier.replace("_", " ")
        drawn = self.tier in {"reserved", "contract"}
        return self._common() | {
            "ChargeDescription": f"{self.pool} GPUs, {tier}",
            "ServiceCategory": "Compute",
            "ServiceSubcategory": "Virtual Machines",
            "ServiceName": "Reserved GPUs" if drawn else "GPU leases",
            "PricingUnit": GPU_HOURS,
            "ConsumedUnit": GPU_HOURS,
            "PricingCategory": _TIERS.get(self.tier, "Other"),
            "SkuId": f"gpu:{self.pool}",
            "SkuMeter": "GPU Time",
            "SkuPriceDetails": _json(
                {"x_Pool": self.pool, "x_PriceId": self.price_id, "x_Tier": self.tier}
            ),
            "ResourceName": None,
            "ResourceType": "GPU reservation" if drawn else "GPU lease",
        }

    def _common(self) -> dict[str, str | None]:
        return {
            "ChargeCategory": "Usage",
            "ChargeClass": None,
            "ChargeFrequency": "Usage-Based",
            "SkuPriceId": self.sku,
            "SubAccountId": self.key_id or None,
            "SubAccountName": self.key or None,
            "Tags": self.tags or None,
        }


def usd(nanos: int) -> str:
    """Write nanos as a decimal of USD, as short as it can be."""
    whole, rest = divmod(abs(nanos), NANOS)
    sign = "-" if nanos < 0 else ""
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def instant(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def category(line: Line) -> str:
    """Return what FOCUS calls a line of an invoice."""
    return {
        "usage": "Usage", "credit": "Credit", "resale": "Credit", "minimum": "Purchase", "tax": "Tax",
    }.get(line.what, "Adjustment")  # fmt: skip


def one_row(line: Line, *, corrects: bool = False) -> dict[str, str | None]:
    """Return the columns of a line that is no usage: a credit, a minimum, tax, rounding."""
    amount = usd(line.amount_nanos)
    row: dict[str, str | None] = {
        "ChargeCategory": category(line),
        "ChargeClass": "Correction" if corrects else None,
        "ChargeDescription": _TEXTS.get(line.what) or describe(line),
        "ChargeFrequency": "One-Time",
        "BilledCost": amount,
        "EffectiveCost": amount,
        "PricingCurrencyEffectiveCost": amount,
        "ListCost": amount,
        "ContractedCost": amount,
        "ServiceCategory": "Compute" if line.pool or line.what == "minimum" else "Other",
        "ServiceSubcategory": (
            "Virtual Machines" if line.pool or line.what == "minimum" else "Other (Other)"
        ),
        "ServiceName": "Reserved GPUs" if line.what == "minimum" else "Billing",
    }
    if line.pool:
        row["ServiceName"] = (
            "GPU leases" if line.tier in {"interruptible", "on_demand"} else "Reserved GPUs"
        )
    if line.what == "minimum":
        row |= {
            "PricingCategory": "Other", "PricingQuantity": "1", "PricingUnit": "Contracts",
            "ListUnitPrice": amount, "ContractedUnitPrice": amount,
            "PricingCurrencyListUnitPrice": amount, "PricingCurrencyContractedUnitPrice": amount,
            "SkuId": "contract:minimum",
            "SkuPriceId": "contract:minimum", "SkuMeter": "Minimum",
        }  # fmt: skip
    return row


_TEXTS: Final = {"tax": "Tax", "rounding": "Rounding to the cent"}


def _json(document: dict[str, str]) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
