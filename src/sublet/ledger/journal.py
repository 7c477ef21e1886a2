"""The ledger as text that other programs read: hledger's journal, beancount's ledger.

Both are plain-text double entry: a debit is written above zero and a credit below. So an account
of ours that holds money for somebody, credits less debits, stands there below zero, as
liabilities and income do in any book-keeping.

Only what moved money is an entry: what was posted at once, and what was posted of a hold. A hold
itself, its void and its expiry move nothing and are left out.

The last lines assert what each account holds by our own counters. The program that reads them
adds up the entries by itself, and refuses the file if it finds anything else, to the nano.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Final

from sublet.core.money import NANOS, Money
from sublet.ledger.transfer import Account, Movement


class Format(StrEnum):
    HLEDGER = "hledger"
    BEANCOUNT = "beancount"


# What an account is, by the last part of its code. What is none of them is the house's own.
_ROOTS: Final[Mapping[str, str]] = {
    "wallet": "liabilities",  # we owe it to the tenant until it is used
    "revenue": "income",
    "bank": "assets",
    "cost": "expenses",  # of what was bought to be sold
    "payable": "liabilities",
    "receivable": "assets",  # what tenants owe of tax and rounding
    "credit_line": "assets",  # what they may use before they pay: their wallets begin with it
    "suspended": "liabilities",  # theirs still, though they cannot spend it
    "rounding": "income",  # of totals to whole cents
}
_TAX: Final = "house:tax:"  # and whose: it is owed to them
_OTHERS: Final = "equity"
_TYPES: Final[Mapping[str, str]] = {
    "liabilities": "L",
    "income": "R",
    "assets": "A",
    "equity": "E",
    "expenses": "X",
}

# A part of a code that is fit to be a part of a name. Any other part is written in hex behind
# two capitals, which no fit part has.
_FIT: Final = re.compile(r"[a-z0-9][a-z0-9-]*")
_HEX: Final = "XX"

_CURRENCY: Final = re.compile(r"[A-Z]{3}")
# Characters that mean something to a reader where a name or a reason stands.
_MEANING: Final = frozenset('%;,|"\\')
_MEANING_FIRST: Final = frozenset("*!( ")
# Beancount wants an account opened before it is used; no fact of ours is older.
_OPENED: Final = date(1970, 1, 1)


def write(
    form: Format,
    accounts: Sequence[Account],
    movements: Iterable[Movement],
    *,
    names: Mapping[str, str],
    now: datetime,
) -> Iterator[str]:
    """Write the ledger in one of the formats, line by line; reads `movements` as it goes.

    Args:
        form: which program is to read it.
        accounts: all of them, as they stand after the last movement.
        movements: all of them, in the order of their sequence.
        names: for people: whose account it is, by its code, where that is known.
        now: when `accounts` were read.
    """
    match form:
        case Format.HLEDGER:
            return _hledger(accounts, movements, names=names, now=now)
        case Format.BEANCOUNT:
            return _beancount(accounts, movements, names=names, now=now)


def account_name(form: Format, code: str) -> str:
    """Return what the account `code` is called in the format. No two are called alike.

    tenant:1f0c…:wallet    liabilities:tenant:1f0c…:wallet    hledger
                           Liabilities:Tenant:1f0c…:Wallet    beancount
    """
    parts = [_root(code), *(_part(part) for part in code.split(":"))]
    if form is Format.BEANCOUNT:
        parts = [part[:1].upper() + part[1:] for part in parts]
    return ":".join(parts)


def account_code(name: str) -> str:
    """Return the code of the account that is called `name` in either format."""
    _, *parts = name.split(":")
    return ":".join(
        bytes.fromhex(part.removeprefix(_HEX)).decode()
        if part.startswith(_HEX)
        else part[:1].lower() + part[1:]
        for part in parts
    )


def _hledger(
    accounts: Sequence[Account],
    movements: Iterable[Movement],
    *,
    names: Mapping[str, str],
    now: datetime,
) -> Iterator[str]:
    called = {account.id: account_name(Format.HLEDGER, account.code) for account in accounts}
    yield f"; The ledger of Sublet as it stood at {_instant(now)}\n"
    yield "; check it:  hledger -f FILE check --strict\n\n"
    yield "decimal-mark .\n"
    for currency in _currencies(accounts):
        yield f"commodity 1000.{0:09d} {currency}\n"
    yield "\n"
    for account in accounts:
        whose = names.get(account.code)
        tenant = "" if whose is None else f", tenant:{_text(whose)}"
        kind = _TYPES[_root(account.code)]
        yield f"account {called[account.id]}  ; type:{kind}{tenant}\n"

    count, last = 0, _day(now)
    for count, movement in enumerate(movements, start=1):  # noqa: B007 -- the last one is said
        transfer = movement.transfer
        last = max(last, _day(transfer.happened_at))
        hold = "" if movement.hold_id is None else f", hold:{movement.hold_id}"
        yield (
            f"\n{_day(transfer.happened_at)} * {_text(transfer.reason)}\n"
            f"    ; id:{transfer.id}, sequence:{movement.sequence}{hold}\n"
            f"    ; happened_at:{_instant(transfer.happened_at)},"
            f" recorded_at:{_instant(movement.recorded_at)}\n"
            f"    {called[transfer.debit_account]}  {_amount(transfer.amount)}\n"
            f"    {called[transfer.credit_account]}  {_amount(-transfer.amount)}\n"
        )

    yield "\n; What each account holds by Sublet's own counters.\n"
    for account in accounts:
        zero = _amount(Money(0, account.currency))
        yield f"\n{last} * balance\n"
        yield f"    {called[account.id]}  {zero} == {_amount(-account.balance)}\n"
    yield f"\n; end of the ledger: {count} entries, {len(accounts)} accounts\n"


def _beancount(
    accounts: Sequence[Account],
    movements: Iterable[Movement],
    *,
    names: Mapping[str, str],
    now: datetime,
) -> Iterator[str]:
    called = {account.id: account_name(Format.BEANCOUNT, account.code) for account in accounts}
    yield f"; The ledger of Sublet as it stood at {_instant(now)}\n"
    yield "; check it:  bean-check FILE\n\n"
    yield 'option "title" "Sublet"\n'
    for currency in _currencies(accounts):
        yield f'option "operating_currency" "{currency}"\n'
    yield "\n"
    for account in accounts:
        yield f"{_OPENED} open {called[account.id]} {account.currency}\n"
        whose = names.get(account.code)
        if whose is not None:
            yield f'  tenant: "{_text(whose)}"\n'

    count, last = 0, _day(now)
    for count, movement in enumerate(movements, start=1):  # noqa: B007 -- the last one is said
        transfer = movement.transfer
        last = max(last, _day(transfer.happened_at))
        hold = "" if movement.hold_id is None else f'  hold: "{movement.hold_id}"\n'
        yield (
            f'\n{_day(transfer.happened_at)} * "{_text(transfer.reason)}"\n'
            f'  id: "{transfer.id}"\n'
            f"  sequence: {movement.sequence}\n"
            f"{hold}"
            f'  happened_at: "{_instant(transfer.happened_at)}"\n'
            f'  recorded_at: "{_instant(movement.recorded_at)}"\n'
            f"  {called[transfer.debit_account]}  {_amount(transfer.amount)}\n"
            f"  {called[transfer.credit_account]}  {_amount(-transfer.amount)}\n"
        )

    # Beancount asserts what stood when a day began, counts what is below an account as part of
    # it, and forgives a difference in the last digit unless it is told not to.
    yield "\n; What each account holds by Sublet's own counters.\n\n"
    totals = _totals(accounts, called)
    for account in accounts:
        name = called[account.id]
        number = _number(totals[name, account.currency])
        yield f"{last + timedelta(days=1)} balance {name}  {number} ~ 0 {account.currency}\n"
    yield f"\n; end of the ledger: {count} entries, {len(accounts)} accounts\n"


def _totals(accounts: Iterable[Account], called: Mapping[int, str]) -> Counter[tuple[str, str]]:
    """Return debits less credits under each name and currency, its own and all below it."""
    totals: Counter[tuple[str, str]] = Counter()
    for account in accounts:
        parts = called[account.id].split(":")
        for depth in range(1, len(parts) + 1):
            totals[":".join(parts[:depth]), account.currency] -= account.balance.nanos
    return totals


def _root(code: str) -> str:
    if code.startswith(_TAX):
        return "liabilities"
    return _ROOTS.get(code.rpartition(":")[2], _OTHERS)


def _part(part: str) -> str:
    return part if _FIT.fullmatch(part) else _HEX + part.encode().hex()


def _currencies(accounts: Iterable[Account]) -> list[str]:
    currencies = sorted({account.currency for account in accounts})
    assert all(_CURRENCY.fullmatch(currency) for currency in currencies), currencies
    return currencies


def _amount(money: Money) -> str:
    return f"{_number(money.nanos)} {money.currency}"


def _number(nanos: int) -> str:
    whole, rest = divmod(abs(nanos), NANOS)
    return f"{'-' if nanos < 0 else ''}{whole}.{rest:09d}"


def _day(instant: datetime) -> date:
    return instant.astimezone(UTC).date()


def _instant(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _text(text: str) -> str:
    """Return `text` on one line, with what a reader would take for its own in percent-encoding."""
    if text.isidentifier() and text.isascii():  # as nearly all are
        return text
    last = len(text) - 1
    return "".join(
        "".join(f"%{byte:02X}" for byte in character.encode())
        if not character.isprintable()
        or character in _MEANING
        or (at == 0 and character in _MEANING_FIRST)
        or (at == last and character == " ")
        else character
        for at, character in enumerate(text)
    )
