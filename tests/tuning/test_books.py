# ruff: noqa: S608 -- the statements are ours, and meant to do harm
"""A job's money and state, as trainers and the auditor see them; and that tampering is named."""

import base64
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import msgspec
import pytest
from psycopg.types.json import Json

from sublet.app import bootstrap
from sublet.core.audit import Findings
from sublet.core.db import Tx
from sublet.core.errors import Conflict, Invalid
from sublet.core.money import Money, Rate
from sublet.core.vault import Vault
from sublet.gateway.batches import audit as batches
from sublet.ledger import store as ledger
from sublet.ledger.transfer import Transfer
from sublet.market import store as market
from sublet.market.price import input_sku, output_sku, training_sku, tuned
from sublet.metering import store as metering
from sublet.metering.usage import Line, Outcome, Usage
from sublet.models import artefacts, stored
from sublet.models.catalogue import Shelf
from sublet.models.chest import Chest
from sublet.models.replica import recipe as recipes
from sublet.models.trainer.protocol import ADAPTER_FILE, Count, Kept, Part, Step, Told
from sublet.models.tuning import audit, ending, store, work
from sublet.models.tuning.job import Method, State, Tuning
from sublet.tenants import store as tenants

if TYPE_CHECKING:
    from sublet.tenants.tenant import Tenant

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TUNING, BATCH = UUID(int=7), UUID(int=8)
COUNT = Count(examples=2, steps=4, tokens=100)


class Story:
    """One tenant and one job, whose trainer we are."""

    def __init__(self, tx: Tx, folder: Path) -> None:
        self.tx = tx
        vault = Vault(folder / "vault")
        vault.prepare()
        self.shelf = Shelf(chest=Chest(folder), vault=vault, most_bytes=1 << 30)
        self.tenant: Tenant = tenants.create_tenant(tx, "acme", now=NOON)
        bootstrap.open_accounts(tx, self.tenant)
        bootstrap.top_up(tx, self.tenant, Money(1_000), payment=1, now=NOON)
        key, _ = tenants.create_key(tx, self.tenant.id, "test", now=NOON)
        recipe = recipes.load("gemma-3-270m")
        tx.execute(
            "INSERT INTO model (name, title, recipe, serving, licence, licence_url, created_at)"
            " VALUES ('base', 'Base', 'base', %s, '', '', %s)",
            (Json({"recipe": msgspec.to_builtins(recipe)}), NOON),
        )
        for sku, nanos in (
            (training_sku("base"), 7), (input_sku("base"), 1), (output_sku(tuned("base")), 3),
            (output_sku("base"), 2),
        ):  # fmt: skip
            market.set_price(tx, sku, Rate(nanos=nanos, per=1), now=NOON)
        price = market.find_price(tx, training_sku("base"))
        assert price is not None
        self.price = price
        writer = stored.begin(tx, self.tenant.id, size=2, shelf=self.shelf, now=NOON)
        writer.write(b"{}")
        said = stored.New(purpose=stored.Purpose.FINE_TUNE, name="a.jsonl")
        file = stored.finish(tx, writer, said, shelf=self.shelf, now=NOON)
        new = store.New(
            id=TUNING, tenant_id=self.tenant.id, api_key_id=key.id, base="base", suffix="x",
            training_file=file.id, validation_file=None, metadata={}, price_id=price.id,
            method=Method(epochs=2, batch_size=1, learning_rate=1e-3, seed=1),
        )  # fmt: skip
        store.move(tx, store.add(tx, new, now=NOON), State.QUEUED, now=NOON)
        self.run("one")

    def run(self, secret: str) -> None:
        store.set_run(self.tx, TUNING, None)
        store.set_run(self.tx, TUNING, uuid4(), secret=secret)
        self.secret = secret

    @property
    def job(self) -> Tuning:
        return store.get(self.tx, TUNING)

    def heard(self) -> Tuning:
        return work.run_of(self.tx, TUNING, self.secret)

    def count(self, count: Count = COUNT) -> bool:
        return work.count(self.tx, self.heard(), count, now=NOON)

    def keep(self, step: int, tokens: int, *, id_: UUID | None = None) -> UUID:
        id_ = id_ or uuid4()
        key = work.begin_checkpoint(self.tx, self.heard(), id_, size=1, shelf=self.shelf, now=NOON)
        assert len(base64.b64decode(key)) == 32
        metrics = Step(step=step, train_loss=1.0, train_accuracy=0.5, learning_rate=1e-3)
        part = Part(path=ADAPTER_FILE, size=1, sha256="00" * 32)
        epoch = step // 2 if step % 2 == 0 else None
        kept = Kept(step=step, tokens=tokens, epoch=epoch, metrics=metrics, files=(part,))
        work.keep(self.tx, self.heard(), id_, kept, now=NOON)
        return id_

    def wallet(self) -> tuple[int, int]:
        """Return (what is there, what of it is held) in nanos."""
        account = ledger.get_account(self.tx, self.tenant.wallet)
        return account.balance.nanos, account.held.nanos

    def differences(self) -> list[str]:
        findings = Findings()
        audit.audit(self.tx, findings)
        batches.audit(self.tx, findings)
        return [one.what for one in findings.differences]


@pytest.fixture
def story(tx: Tx) -> Iterator[Story]:
    with tempfile.TemporaryDirectory() as folder:
        yield Story(tx, Path(folder))


def test_a_job_holds_all_and_is_charged_once_with_its_model(story: Story) -> None:
    assert story.count() and story.wallet() == (1_000, 700)
    assert story.count(), "a repeat changes nothing"
    first = story.keep(1, 25)
    story.run("two")  # reclaimed: another one goes on
    assert story.count() and story.wallet() == (1_000, 700)
    last = work.work(story.tx, story.heard(), shelf=story.shelf, checkpoint_seconds=1, now=NOON)
    assert last.resume is not None and (last.resume.step, last.resume.tokens) == (1, 25)
    second = story.keep(2, 50)
    assert artefacts.get(story.tx, first).sealed_key is None, "what is superseded is gone for good"
    assert story.differences() == []
    third = story.keep(4, 100)
    job = story.job
    assert job.state is State.SUCCEEDED and job.model is not None
    assert story.wallet() == (300, 0) and story.differences() == []
    assert {artefacts.get(story.tx, one).state for one in (second, third)} == {"ready"}
    names = [one.name for one in store.list_adapters(story.tx)]
    assert sorted(names) == sorted([job.model, f"{job.model}.step-2"])
    for sku, nanos in ((input_sku, 1), (output_sku, 3)):
        price = market.find_price(story.tx, sku(job.model))
        assert price is not None and price.rate == Rate(nanos=nanos, per=1)
    with pytest.raises(Conflict, match="this run is over"):
        story.heard()


def test_who_is_not_the_last_run_changes_nothing(story: Story) -> None:
    story.count()
    story.run("two")
    with pytest.raises(Conflict):
        work.run_of(story.tx, TUNING, "one")
    with pytest.raises(Conflict, match="counted other"):
        story.count(Count(examples=2, steps=4, tokens=101))


def test_a_checkpoint_that_cannot_be_is_refused(story: Story) -> None:
    story.count()
    id_ = story.keep(2, 50)
    story.keep(2, 50, id_=id_)  # its answer was lost: it is there
    for step, tokens in ((2, 60), (1, 10)):
        with pytest.raises(Conflict):
            story.keep(step, tokens)
    for step, tokens in ((3, 50), (3, 101), (4, 99), (3, 100), (5, 100)):
        with pytest.raises(Invalid):
            story.keep(step, tokens)


def test_who_cannot_pay_is_told_and_holds_nothing(story: Story) -> None:
    assert not story.count(Count(examples=2, steps=4, tokens=1_000))
    assert story.job.state is State.FAILED
    assert story.job.error is not None and story.job.error.code == "payment_required"
    assert story.wallet() == (1_000, 0) and story.differences() == []


def test_what_is_cancelled_pays_for_its_checkpoints_and_what_fails_for_nothing(
    story: Story,
) -> None:
    story.count()
    story.keep(2, 50)
    story.keep(3, 75)
    ending.end(story.tx, story.job, State.CANCELLED, now=NOON)
    assert story.wallet() == (1_000 - 75 * 7, 0) and story.differences() == []
    assert [one.name for one in store.list_adapters(story.tx)] == [
        f"acme/base-ft-x-{TUNING.hex[-8:]}.step-2"
    ]


def test_what_fails_costs_nothing_and_leaves_nothing(story: Story) -> None:
    story.count()
    kept = story.keep(2, 50)
    work.fail(story.tx, story.heard(), Told(code="c", message="m"), now=NOON)
    assert story.wallet() == (1_000, 0) and story.differences() == []
    assert artefacts.get(story.tx, kept).sealed_key is None
    assert store.list_adapters(story.tx) == []


def end_a_batch(story: Story) -> None:
    """Of three lines one was answered, one refused, one expired."""
    accounts = (story.tenant.wallet, story.tenant.revenue)
    wallet, revenue = (ledger.get_account(story.tx, one) for one in accounts)
    hold = Transfer(
        id=uuid4(), debit_account=wallet.id, credit_account=revenue.id, amount=Money(30),
        reason="tokens", happened_at=NOON,
    )  # fmt: skip
    ledger.hold(story.tx, hold, holder="gateway:x", expires_at=NOON, now=NOON)
    usage = Usage(
        id=uuid4(), source=f"batch:{BATCH}", sequence=1, tenant_id=story.tenant.id, model="base",
        output_tokens=2, outcome=Outcome.COMPLETED, happened_at=NOON,
    )  # fmt: skip
    lines = [Line(price=story.price, quantity=2)]
    metering.settle(story.tx, usage, lines, hold_id=hold.id, now=NOON)
    story.tx.execute(
        "INSERT INTO batch_end (batch_id, tenant_id, total, answered, refused, expired, cancelled,"
        " happened_at, recorded_at) VALUES (%s, %s, 3, 1, 1, 1, 0, now(), now())",
        (BATCH, story.tenant.id),
    )


OF_BATCH = (
    "INSERT INTO usage (id, source, sequence, tenant_id, model, outcome, happened_at, recorded_at)"
)
TAMPERED = {
    "a charge of tokens that nobody trained": (
        "has trained 100 tokens and was charged 101",
        ["UPDATE usage SET input_tokens = 101 WHERE source LIKE 'tuning:%'"],
    ),
    "a charge is gone": (
        "was charged 0", ["DELETE FROM usage WHERE source LIKE 'tuning:%'"],
    ),
    "a checkpoint is gone": (
        "has trained 50 tokens and was charged 100",
        ["DELETE FROM tuning_checkpoint WHERE step = 4"],
    ),
    "a job that succeeded is said to have failed": (
        "is failed, has trained 100", ["UPDATE tuning SET state = 'failed'"],
    ),
    "it was charged more than was held": (
        "and 700 were held", ["UPDATE charge SET amount_nanos = 701 WHERE quantities = '{100}'"],
    ),
    "it was charged at another price": (
        "at another price", ["UPDATE charge SET price_ids = '{1}'"],
    ),
    "a checkpoint trained nothing new": (
        "trained nothing new", ["UPDATE tuning_checkpoint SET tokens = 100"],
    ),
    "a second charge of the same job": (
        "is of no such job",
        [(f"{OF_BATCH} SELECT gen_random_uuid(), source, 2, tenant_id, model, outcome, now(), now()"
         " FROM usage WHERE source LIKE 'tuning:%'")],
    ),
    "a line that expired is charged": (
        "answered 1 lines, and 2 were charged",
        [(f"{OF_BATCH} SELECT gen_random_uuid(), source, 2, tenant_id, model, outcome, now(), now()"
         " FROM usage WHERE source LIKE 'batch:%'")],
    ),
    "an answered line is not charged": (
        "answered 1 lines, and 0 were charged", ["DELETE FROM usage WHERE source LIKE 'batch:%'"],
    ),
    "a line is lost": (
        "has 3 lines, of which 2 have ended", ["UPDATE batch_end SET expired = 0"],
    ),
    "a batch is another tenant's": (
        "was charged to somebody else",
        ["INSERT INTO tenant VALUES (gen_random_uuid(), 'other', 'customer', false, now())",
         "UPDATE batch_end SET tenant_id = (SELECT id FROM tenant WHERE name = 'other')"],
    ),
    "a batch's end is gone": (
        "which there is not", ["DELETE FROM batch_end"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_named(story: Story, name: str) -> None:
    words, statements = TAMPERED[name]
    story.count()
    story.keep(2, 50)
    story.keep(4, 100)
    end_a_batch(story)
    assert story.differences() == []
    tamper(story.tx, statements)
    found = story.differences()
    assert any(words in one for one in found), found


def tamper(tx: Tx, statements: Sequence[str]) -> None:
    for table in ("usage", "charge", "tuning_checkpoint", "batch_end"):
        tx.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER".encode())
    for statement in statements:
        assert tx.execute(statement.encode()).rowcount, statement
