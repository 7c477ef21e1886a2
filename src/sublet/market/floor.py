"""What a GPU-hour costs its owner: the floor below which nothing is sold.

    marginal = watts * PUE * tariff + wear + support      what lending one more hour costs
    full     = marginal + what the capital costs          what it must earn in the long run

The operator chooses how much of the capital the floor includes, from none of it to all.
"""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Final, Self

from sublet.core.errors import Invalid, Refused
from sublet.core.money import NANOS, Rate

_MOST: Final = 10**6  # of watts and of USD


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one GPU costs, in nanos of its currency per hour."""

    power_nanos: int
    wear_nanos: int
    support_nanos: int
    capital_nanos: int

    @classmethod
    def of_usd(
        cls,
        *,
        watts: float,
        pue: float,
        usd_per_kwh: str | float,
        wear: str | float,
        support: str | float,
        capital: str | float,
    ) -> Self:
        """Build from USD per hour, and from power: watts at the GPU's share of its server's plug.

        Raises:
            Invalid: something is no number, negative or absurdly large, or the PUE is below 1.
        """
        if not pue >= 1:
            raise Invalid(f"a PUE is 1 or more, not {pue!r}")
        power = _number(watts, "watts") / 1000 * _number(pue, "pue") * _number(usd_per_kwh, "kwh")
        return cls(
            power_nanos=_nanos(power),
            wear_nanos=_nanos(_number(wear, "wear")),
            support_nanos=_nanos(_number(support, "support")),
            capital_nanos=_nanos(_number(capital, "capital")),
        )

    @property
    def marginal_nanos(self) -> int:
        return self.power_nanos + self.wear_nanos + self.support_nanos

    @property
    def full_nanos(self) -> int:
        return self.marginal_nanos + self.capital_nanos

    def floor(self, capital_share: float) -> Rate:
        """Return the least price, per GPU-second, with so much of the capital's cost in it.

        Raises:
            Invalid: the share does not lie in 0 to 1.
        """
        if not 0 <= capital_share <= 1:
            raise Invalid(f"the floor includes 0 to 1 of the capital's cost, not {capital_share!r}")
        capital = Decimal(str(capital_share)) * self.capital_nanos
        nanos = self.marginal_nanos + int(capital.to_integral_value(rounding=ROUND_CEILING))
        return Rate(nanos=nanos, per=3_600)


def below(rate: Rate, floor: Rate) -> bool:
    """Say whether a price is lower than the floor, exactly, whatever the units of the two."""
    assert rate.currency == floor.currency, (rate, floor)
    return rate.nanos * floor.per < floor.nanos * rate.per


def hold_to_floor(rate: Rate, floor: Rate | None, *, exception: str | None) -> None:
    """Let a price pass that is not below its floor, or has a named exception.

    Raises:
        Refused: it is below, and no exception is named.
        Invalid: an exception is named, and needs none.
    """
    if floor is None or not below(rate, floor):
        if exception is not None:
            raise Invalid("the price is not below its floor: leave out the exception")
        return
    if exception is None or not exception.strip():
        raise Refused(
            f"the price is {_usd_hour(rate)} USD per GPU-hour and its floor is"
            f" {_usd_hour(floor)}: raise it, or name why it may be lower as the exception"
        )


def _usd_hour(rate: Rate) -> str:
    return f"{Decimal(rate.nanos) * 3_600 / rate.per / NANOS:f}".rstrip("0").rstrip(".")


def _number(value: str | float, what: str) -> Decimal:
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or not 0 <= number < _MOST:
        raise Invalid(
            f"{what} is a number such as 0.07, not less than nothing, not {value!r}"[:200]
        )
    return number


def _nanos(usd: Decimal) -> int:
    return int((usd * NANOS).to_integral_value(rounding=ROUND_CEILING))
