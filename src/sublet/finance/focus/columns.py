"""Which columns each dataset of FOCUS has, by version, and in which order.

Source: the FinOps Open Cost and Usage Specification, 1.2 and 1.4. Columns for what Sublet does not
sell (commitment discounts, zones, regions, prices in other currencies, split costs) are left out, as
the specification allows; see docs/operate/focus.md.
"""

from enum import StrEnum
from typing import Final


class Version(StrEnum):
    V1_2 = "1.2"
    V1_4 = "1.4"


class Dataset(StrEnum):
    COST_AND_USAGE = "cost-and-usage"
    CONTRACT_COMMITMENT = "contract-commitment"
    BILLING_PERIOD = "billing-period"
    INVOICE_DETAIL = "invoice-detail"


class Form(StrEnum):
    PARQUET = "parquet"
    CSV = "csv"


# In 1.2 the provider and the publisher are named; in 1.4 who provides the service, and on whose hosts.
_PROVIDERS: Final = {
    Version.V1_2: ("ProviderName", "PublisherName"),
    Version.V1_4: ("ServiceProviderName", "HostProviderName"),
}
_COST_AND_USAGE: Final = (
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency",
    "BillingPeriodEnd", "BillingPeriodStart", "CapacityReservationId", "CapacityReservationStatus",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice",
    "EffectiveCost", "InvoiceId", "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory",
    "PricingQuantity", "PricingUnit", "ResourceId", "ResourceName", "ResourceType", "ServiceCategory",
    "ServiceName", "ServiceSubcategory", "SkuId", "SkuMeter", "SkuPriceDetails", "SkuPriceId",
    "SubAccountId", "SubAccountName", "Tags",
    # Prices are in the currency of the bill.
    "PricingCurrency", "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    # Always empty, since contracts are paid by the day; validators read it beside `ConsumedQuantity`.
    "CommitmentDiscountStatus",
)  # fmt: skip
_CUSTOM: Final = ("x_UsageId",)
_ONLY_1_4: Final = ("ContractApplied", "InvoiceDetailId")
_CONTRACT_COMMITMENT: Final = (
    "BillingCurrency", "ContractCommitmentApplicability", "ContractCommitmentBenefitCategory",
    "ContractCommitmentCategory", "ContractCommitmentCost", "ContractCommitmentCreated",
    "ContractCommitmentDescription", "ContractCommitmentDiscountPercentage",
    "ContractCommitmentDurationType", "ContractCommitmentFulfillmentInterval",
    "ContractCommitmentId", "ContractCommitmentLastUpdated", "ContractCommitmentLifecycleStatus",
    "ContractCommitmentModel", "ContractCommitmentOfferCategory",
    "ContractCommitmentPaymentInterval", "ContractCommitmentPaymentModel",
    "ContractCommitmentPeriodEnd", "ContractCommitmentPeriodStart", "ContractCommitmentQuantity",
    "ContractCommitmentType", "ContractCommitmentUnit", "ContractId", "ContractPeriodEnd",
    "ContractPeriodStart", "InvoiceIssuerName", "ServiceProviderName",
)  # fmt: skip
_BILLING_PERIOD: Final = (
    "BillingPeriodCreated", "BillingPeriodEnd", "BillingPeriodLastUpdated", "BillingPeriodStart",
    "BillingPeriodStatus", "InvoiceIssuerName",
)  # fmt: skip
_INVOICE_DETAIL: Final = (
    "BilledCost", "BillingAccountId", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "InvoiceDetailCreated", "InvoiceDetailDescription", "InvoiceDetailGrain",
    "InvoiceDetailId", "InvoiceDetailLastUpdated", "InvoiceId", "InvoiceIssueDate",
    "InvoiceIssueStatus", "InvoiceIssuerName", "PaymentDueDate", "PaymentTerms", "ReferenceInvoiceId",
)  # fmt: skip

# Written as decimals in Parquet: 20 digits before the point and 18 after it. All else is text.
DECIMALS: Final = frozenset({
    "BilledCost", "ConsumedQuantity", "ContractedCost", "ContractedUnitPrice", "EffectiveCost",
    "ListCost", "ListUnitPrice", "PricingQuantity", "ContractCommitmentCost",
    "PricingCurrencyContractedUnitPrice", "PricingCurrencyEffectiveCost",
    "PricingCurrencyListUnitPrice",
    "ContractCommitmentDiscountPercentage", "ContractCommitmentQuantity",
})  # fmt: skip


def columns_of(dataset: Dataset, version: Version) -> tuple[str, ...]:
    """Return a dataset's columns: those of FOCUS by name, then our own."""
    match dataset:
        case Dataset.COST_AND_USAGE:
            more = _ONLY_1_4 if version is Version.V1_4 else ()
            return (*sorted((*_COST_AND_USAGE, *_PROVIDERS[version], *more)), *_CUSTOM)
        case Dataset.CONTRACT_COMMITMENT:
            return _CONTRACT_COMMITMENT
        case Dataset.BILLING_PERIOD:
            return _BILLING_PERIOD
        case Dataset.INVOICE_DETAIL:
            return _INVOICE_DETAIL


def datasets_of(version: Version) -> tuple[Dataset, ...]:
    """Return what a version of FOCUS knows."""
    return tuple(Dataset) if version is Version.V1_4 else (Dataset.COST_AND_USAGE,)
