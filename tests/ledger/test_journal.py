"""The exported ledger, read by two programs that know nothing of us."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from random import Random
from urllib.parse import unquote
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sublet.core.db import Database, Tx
from sublet.core.errors import Unpaid
from sublet.core.money import NANOS, Money
from sublet.ledger import store
from sublet.ledger.journal import Format, account_code, account_name, write
from sublet.ledger.transfer import Account, Kind, Movement, Transfer

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
TENANT = "tenant:0fa85f64-5717-4562-b3fc-2c963f66afa6"
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
# Each means something to hledger or beancount, or looks as if it did.
ODD_REASONS = (
    "tokens", "", " ", "a;b", "a  ; b", "! x", "* x", "(12) x", "payee | note", '"quoted"',
    "back\\slash", "\\", "two\nlines", "tab\tbed", "date:2020-01-01", "50%", "%3B", "Überweisung",
    "支払い", "🧾", "\u2028", "trailing ", "= x", "2026-01-01", "; x", "# x", "a, tag:b", "[2020-01-01]",
)  # fmt: skip
ODD_CODES = (
    "bank", "bank:sub", "a b", "A", "a", "XX41", "xx41", "", ":", "a::b", "é", "(x)", "x  ; y", "UPPER:wallet",
)  # fmt: skip

pytestmark = pytest.mark.real
# hledger reads files in the encoding of its locale.
_ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}
# Prints each account's own balance, in beancount's own words.
_BEAN_BALANCES = """
import json, sys
from collections import Counter
from decimal import Decimal, getcontext
from beancount import loader
from beancount.core import data

getcontext().prec = 60
entries, errors, _ = loader.load_file(sys.argv[1])
assert not errors, errors
balances = {entry.account: Decimal(0) for entry in entries if isinstance(entry, data.Open)}
for entry in entries:
    for posting in entry.postings if isinstance(entry, data.Transaction) else ():
        balances[posting.account] += posting.units.number
json.dump({name: format(number, "f") for name, number in balances.items()}, sys.stdout)
"""


def run_hledger(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("hledger") is None:
        if os.environ.get("CI"):
            pytest.fail("CI installs hledger, and it is not there")
        pytest.skip("hledger is not installed: apt install hledger")
    return subprocess.run(
        ["hledger", *map(str, arguments)],
        env=_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def run_python(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def check(form: Format, file: Path) -> str:
    """Have the program itself check the file, as strictly as it can; return its complaints."""
    match form:
        case Format.HLEDGER:
            done = run_hledger("-f", file, "check", "--strict")
        case Format.BEANCOUNT:
            program = "from beancount.scripts.check import main; main()"
            done = run_python("-c", program, "--no-cache", file)
    assert (done.returncode != 0) == bool(done.stderr), done
    return done.stdout + done.stderr


def balances(form: Format, file: Path) -> dict[str, Decimal]:
    """Return what each account holds as the program adds it up, by our codes."""
    match form:
        case Format.HLEDGER:
            done = run_hledger(
                "-f", file, "balance", "--flat", "--empty", "--no-total", "-O", "csv"
            )
            rows = list(csv.reader(done.stdout.splitlines()))[1:]
            added_up = {name: text.split(" ")[0] for name, text in rows}
        case Format.BEANCOUNT:
            done = run_python("-c", _BEAN_BALANCES, file)
            added_up = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    return {account_code(name): -Decimal(text) for name, text in added_up.items()}


def ours(accounts: Sequence[Account]) -> dict[str, Decimal]:
    return {account.code: Decimal(account.balance.nanos).scaleb(-9) for account in accounts}


def export(form: Format, db: Database, file: Path) -> list[Account]:
    """Write what `db` holds to `file`; return the accounts."""
    with db.transaction() as tx:
        accounts = store.list_accounts(tx)
        movements = store.read_movements(tx, {account.id: account.currency for account in accounts})
        lines = write(form, accounts, movements, names={}, now=NOON)
        file.write_text("".join(lines), encoding="utf-8")
    return accounts


class Life:
    """A random but repeatable past: payments, holds and how they end."""

    def __init__(self, tx: Tx, seed: int) -> None:
        self.tx = tx
        self.dice = Random(seed)
        self.holds: list[Transfer] = []
        self.now = NOON - timedelta(days=20)
        bank = store.open_account(tx, "house:bank", prepaid=False)
        self.accounts = [bank]
        for number in range(6):
            tenant = f"tenant:{UUID(int=self.dice.getrandbits(128))}"
            wallet = store.open_account(tx, f"{tenant}:wallet", prepaid=number % 3 != 0)
            revenue = store.open_account(tx, f"{tenant}:revenue", prepaid=False)
            store.post(tx, self.transfer(bank, wallet), now=self.now)
            self.accounts += [wallet, revenue]
        self.accounts += [store.open_account(tx, code, prepaid=False) for code in ODD_CODES]

    def step(self) -> None:
        self.now += timedelta(minutes=self.dice.randint(0, 300))
        with suppress(Unpaid), self.tx.transaction():
            match self.dice.choice(["post", "post", "hold", "hold", "settle", "void", "expire"]):
                case "post":
                    store.post(self.tx, self.any_transfer(), now=self.now)
                case "hold":
                    transfer = self.any_transfer()
                    expires_at = self.now + timedelta(hours=3)
                    store.hold(self.tx, transfer, holder="me", expires_at=expires_at, now=self.now)
                    self.holds.append(transfer)
                case "settle" if self.holds:
                    held = self.taken()
                    amount = Money(self.dice.randint(1, held.amount.nanos))
                    store.settle(self.tx, held.id, amount, happened_at=self.now, now=self.now)
                case "void" if self.holds:
                    store.void(self.tx, self.taken().id, now=self.now)
                case "expire":
                    expired = store.expire(self.tx, now=self.now)
                    self.holds = [held for held in self.holds if held.id not in expired]
                case _:
                    pass

    def any_transfer(self) -> Transfer:
        debit, credit = self.dice.sample(self.accounts, 2)
        return self.transfer(debit, credit)

    def taken(self) -> Transfer:
        return self.holds.pop(self.dice.randrange(len(self.holds)))

    def transfer(self, debit: Account, credit: Account) -> Transfer:
        return Transfer(
            id=UUID(int=self.dice.getrandbits(128)),
            debit_account=debit.id,
            credit_account=credit.id,
            amount=Money(self.dice.choice([1, 20, 999_999_999, NANOS, 10**13 + 1])),
            reason=self.dice.choice(ODD_REASONS),
            # What is recorded late happened before what was recorded before it.
            happened_at=self.now - timedelta(hours=self.dice.choice([0, 0, 0, 30])),
        )


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("seed", range(2))
def test_another_program_adds_up_what_our_counters_say(
    db: Database, folder: Path, form: Format, seed: int
) -> None:
    with db.transaction() as tx:
        life = Life(tx, seed)
        for _ in range(150):
            life.step()
        kinds = {row["kind"] for row in tx.execute("SELECT kind FROM transfer").fetchall()}
    assert kinds == set(Kind), "the past holds no example of some kind"
    accounts = export(form, db, folder / "ledger")
    assert check(form, folder / "ledger") == ""
    assert balances(form, folder / "ledger") == ours(accounts)
    assert any(account.balance.nanos for account in accounts)


@pytest.mark.parametrize("form", Format)
def test_an_empty_ledger_is_a_good_one(db: Database, folder: Path, form: Format) -> None:
    export(form, db, folder / "ledger")
    assert check(form, folder / "ledger") == ""


@pytest.mark.parametrize("form", Format)
def test_a_nano_that_is_missing_is_found_by_the_other_program(
    db: Database, folder: Path, form: Format
) -> None:
    with db.transaction() as tx:
        Life(tx, 1)
        tx.execute(
            "UPDATE account SET credits_posted = credits_posted + 1 WHERE code LIKE '%wallet'"
        )
    export(form, db, folder / "ledger")
    assert "wallet" in check(form, folder / "ledger").lower()


# ---- the text alone


def account(id_: int, code: str, balance: int, currency: str = "USD") -> Account:
    return Account(
        id=id_, code=code, currency=currency, prepaid=False, debits_pending=0,
        debits_posted=max(-balance, 0), credits_pending=0, credits_posted=max(balance, 0),
    )  # fmt: skip


def movement(
    sequence: int, reason: str, nanos: int = 1, *, hold_id: UUID | None = None, **more: datetime
) -> Movement:
    return Movement(
        transfer=Transfer(
            id=UUID(int=sequence),
            debit_account=1,
            credit_account=2,
            amount=Money(nanos),
            reason=reason,
            happened_at=more.get("happened_at", NOON),
        ),
        sequence=sequence,
        hold_id=hold_id,
        recorded_at=NOON,
    )


def test_what_an_entry_looks_like() -> None:
    accounts = [
        account(1, "house:bank", -1_500_000_000),
        account(2, f"{TENANT}:wallet", 1_500_000_000),
    ]
    late = datetime(2026, 2, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    entry = movement(7, "payment", 1_500_000_000, hold_id=UUID(int=9), happened_at=late)
    names = {f"{TENANT}:wallet": "acme, inc"}
    id_, hold = UUID(int=7), UUID(int=9)
    hledger = "".join(write(Format.HLEDGER, accounts, [entry], names=names, now=NOON))
    assert (
        hledger
        == f"""\
; The ledger of Sublet as it stood at 2026-01-31T12:00:00.000000Z
; check it:  hledger -f FILE check --strict

decimal-mark .
commodity 1000.000000000 USD

account assets:house:bank  ; type:A
account liabilities:{TENANT}:wallet  ; type:L, tenant:acme%2C inc

2026-01-31 * payment
    ; id:{id_}, sequence:7, hold:{hold}
    ; happened_at:2026-01-31T22:30:00.000000Z, recorded_at:2026-01-31T12:00:00.000000Z
    assets:house:bank  1.500000000 USD
    liabilities:{TENANT}:wallet  -1.500000000 USD

; What each account holds by Sublet's own counters.

2026-01-31 * balance
    assets:house:bank  0.000000000 USD == 1.500000000 USD

2026-01-31 * balance
    liabilities:{TENANT}:wallet  0.000000000 USD == -1.500000000 USD

; end of the ledger: 1 entries, 2 accounts
"""
    )
    beancount = "".join(write(Format.BEANCOUNT, accounts, [entry], names=names, now=NOON))
    wallet = "Liabilities:Tenant:0fa85f64-5717-4562-b3fc-2c963f66afa6:Wallet"
    assert (
        beancount
        == f"""\
; The ledger of Sublet as it stood at 2026-01-31T12:00:00.000000Z
; check it:  bean-check FILE

option "title" "Sublet"
option "operating_currency" "USD"

1970-01-01 open Assets:House:Bank USD
1970-01-01 open {wallet} USD
  tenant: "acme%2C inc"

2026-01-31 * "payment"
  id: "{id_}"
  sequence: 7
  hold: "{hold}"
  happened_at: "2026-01-31T22:30:00.000000Z"
  recorded_at: "2026-01-31T12:00:00.000000Z"
  Assets:House:Bank  1.500000000 USD
  {wallet}  -1.500000000 USD

; What each account holds by Sublet's own counters.

2026-02-01 balance Assets:House:Bank  1.500000000 ~ 0 USD
2026-02-01 balance {wallet}  -1.500000000 ~ 0 USD

; end of the ledger: 1 entries, 2 accounts
"""
    )


@given(st.lists(TEXTS, unique=True, max_size=20))
@example(list(ODD_CODES))
@pytest.mark.parametrize("form", Format)
def test_every_account_has_a_name_of_its_own_that_leads_back(
    form: Format, codes: list[str]
) -> None:
    names = [account_name(form, code) for code in codes]
    assert [account_code(name) for name in names] == codes
    assert len({name.lower() for name in names}) <= len(set(names)) == len(codes)


@pytest.mark.parametrize("form", Format)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    reasons=st.lists(TEXTS, min_size=1, max_size=30),
    codes=st.lists(TEXTS, unique=True, min_size=2, max_size=10),
    nanos=st.integers(1, 10**26),
)
@example(reasons=list(ODD_REASONS), codes=list(ODD_CODES), nanos=10**26 + 1)
def test_any_word_any_name_and_any_amount_can_be_read(
    folder: Path, form: Format, reasons: list[str], codes: list[str], nanos: int
) -> None:
    total = nanos * len(reasons)
    accounts = [
        account(number, code, {1: -total, 2: total}.get(number, 0))
        for number, code in enumerate(codes, start=1)
    ]
    movements = [movement(number, reason, nanos) for number, reason in enumerate(reasons)]
    names = dict(zip(codes, reasons, strict=False))
    file = folder / "ledger"
    file.write_text(
        "".join(write(form, accounts, movements, names=names, now=NOON)), encoding="utf-8"
    )
    assert check(form, file) == ""
    assert balances(form, file) == ours(accounts)
    if form is Format.HLEDGER:
        printed = json.loads(run_hledger("-f", file, "print", "-O", "json").stdout)
        assert [unquote(entry["tdescription"]) for entry in printed[: len(reasons)]] == reasons


def test_currencies_are_kept_apart(folder: Path) -> None:
    accounts = [
        account(1, "house:bank", -5), account(2, "tenant:a:wallet", 5),
        account(3, "eur:bank", 0, "EUR"), account(4, "eur:bank:part", 0, "EUR"),
    ]  # fmt: skip
    for form in Format:
        file = folder / form
        lines = write(form, accounts, [movement(1, "payment", 5)], names={}, now=NOON)
        file.write_text("".join(lines), encoding="utf-8")
        assert check(form, file) == ""


@pytest.mark.parametrize("form", Format)
def test_a_long_ledger_is_never_held_as_a_whole(form: Format) -> None:
    taken = 0

    def endless() -> Iterator[Movement]:
        nonlocal taken
        while True:
            taken += 1
            yield movement(taken, "tokens")

    accounts = [account(1, "house:bank", 0), account(2, "tenant:a:wallet", 0)]
    entries = 0
    for line in write(form, accounts, endless(), names={}, now=NOON):
        entries += "tokens" in line
        assert taken <= entries + 1
        if entries == 1000:
            break
