"""A fine-tuning job whose control plane dies at each of its steps, and whose trainer dies once."""

import os
import re
import signal
import subprocess
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from tests.failpoints.plane import Plane, Zygote, plane
from tests.tuning.lesson import PYTHON, TINY, lines, needs_trainer

from sublet.app.secrets import VAULT
from sublet.core.clock import SystemClock
from sublet.core.ids import new_id
from sublet.core.vault import Vault
from sublet.market import store as market
from sublet.market.price import training_sku
from sublet.models import stored
from sublet.models.catalogue import Shelf
from sublet.models.chest import Chest
from sublet.models.stored import New, Purpose
from sublet.models.tuning import store
from sublet.models.tuning.job import Method, State, Tuning

EXAMPLES, EPOCHS = 20, 3
LONG = 900  # it dies twenty times, and a trainer loads torch twice


def declared() -> set[str]:
    folder = Path("src/sublet/models/tuning")
    text = "".join(path.read_text() for path in folder.rglob("*.py"))
    return set(re.findall(r'failpoint\("([a-z_.]+)"\)', text))


def commits() -> set[str]:
    """Return the points around the transactions that have a name, but for those of trouble."""
    text = Path("src/sublet/models/tuning/service.py").read_text()
    names = set(re.findall(r'transaction\("(tuning\.[a-z_]+)"', text))
    text = Path("src/sublet/app/routes/tunings.py").read_text()
    names |= set(re.findall(r'"(tuning\.[a-z_]+)"', text)) - {"tuning.fail"}
    return {f"{name}.{when}_commit" for name in names for when in ("before", "after")}


def bring(plane: Plane, key: str) -> None:
    source = {"kind": "path", "path": "tiny.gguf"}
    terms = {"licence": "none", "licence_url": "https://example.com/none"}
    plane.call("POST", "/v1/models", {"name": "tiny", "source": source, **terms}, key=key)
    plane.until(lambda: plane.call("GET", "/v1/models/lab/tiny", key=key)["state"] == "ready")
    plane.call("PUT", "/v1/models/lab/tiny/deployment", {}, key=key)


def add(plane: Plane, tenant_id: UUID) -> UUID:
    """Ask for a job, as a gateway does."""
    now = SystemClock().now()
    shelf = Shelf(
        chest=Chest(plane.folder / "artefacts"),
        vault=Vault(plane.folder / VAULT),
        most_bytes=1 << 30,
    )
    with plane.db.transaction() as tx:
        writer = stored.begin(tx, tenant_id, size=1 << 20, shelf=shelf, now=now)
        writer.write(lines(("Say tea.", "tea!"), ("Say sun.", "sun!")) * (EXAMPLES // 2))
        said = New(purpose=Purpose.FINE_TUNE, name="lesson.jsonl")
        file = stored.finish(tx, writer, said, shelf=shelf, now=now)
        key = tx.execute("SELECT id FROM api_key WHERE tenant_id = %s", (tenant_id,)).fetchone()
        price = market.find_price(tx, training_sku("lab/tiny"))
        assert key is not None and price is not None
        new = store.New(
            id=new_id(), tenant_id=tenant_id, api_key_id=key["id"], base="lab/tiny", suffix="",
            training_file=file.id, validation_file=None, metadata={}, price_id=price.id,
            method=Method(epochs=EPOCHS, batch_size=1, learning_rate=1e-3, seed=1),
        )  # fmt: skip
        return store.add(tx, new, now=now).id


def look(plane: Plane, tuning_id: UUID) -> Tuning:
    with plane.db.transaction() as tx:
        return store.get(tx, tuning_id)


def kill_trainer(plane: Plane) -> bool:
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"sublet.models.trainer" in command and str(plane.folder).encode() in command:
            os.kill(int(entry.name), signal.SIGKILL)
            return True
    return False


@needs_trainer
def test_whichever_step_is_the_last_what_was_trained_is_paid_once(
    zygote: Zygote, database_url: str, folder: Path
) -> None:
    imports = folder / "imports" / "lab"
    imports.mkdir(parents=True)
    subprocess.run([PYTHON, TINY, imports / "tiny.gguf"], check=True)
    variables = {
        "SUBLET_MODELS_FOLDER": str(imports.parent), "SUBLET_TRAINER_PYTHON": str(PYTHON),
        "SUBLET_CHECKPOINT_SECONDS": "0.01",
    }  # fmt: skip
    with plane(zygote, database_url, folder, plan="tuning.* kill", variables=variables) as control:
        tenant_id = UUID(control.call("POST", "/v1/tenants", {"name": "lab"})["id"])
        control.call("POST", f"/v1/tenants/{tenant_id}/credits", {"amount_usd": "1"})
        key = control.call("POST", f"/v1/tenants/{tenant_id}/keys", {"name": "test"})["key"]
        bring(control, key)
        first, second = add(control, tenant_id), add(control, tenant_id)
        with control.db.transaction() as tx:
            assert store.ask_cancel(tx, second, now=SystemClock().now())

        def kept() -> int:
            with control.db.transaction() as tx:
                found = store.list_checkpoints(tx, first)
            return found[0].step if found else 0

        control.until(lambda: kept() > 2, seconds=LONG)
        assert kill_trainer(control)
        going = {State.QUEUED, State.RUNNING}
        control.until(lambda: look(control, first).state not in going, seconds=LONG)
        control.until(lambda: look(control, second).state is State.CANCELLED)
        done = look(control, first)
        assert done.state is State.SUCCEEDED and done.runs == 2, done
        killed = {mark.removesuffix(" kill") for mark in control.fired()}
        assert killed >= declared() | commits(), (declared() | commits()) - killed
        control.until(lambda: len(control.deaths) == len(killed))
        control.until(lambda: not Decimal(control.call("GET", "/v1/wallet", key=key)["held_usd"]))
        charges = control.call("GET", "/v1/charges", key=key)["items"]
        assert [(one["sku"], one["quantity"]) for one in charges] == [
            ("model:lab/tiny:training", done.tokens)
        ]
        with control.db.transaction() as tx:
            steps = [one.step for one in store.list_checkpoints(tx, first)]
            told = tx.execute(
                "SELECT step FROM tuning_event WHERE tuning_id = %s AND step IS NOT NULL"
                " ORDER BY number",
                (first,),
            ).fetchall()
        assert steps == list(range(EXAMPLES * EPOCHS, 0, -1))
        assert [row["step"] for row in told] == list(range(1, EXAMPLES * EPOCHS + 1))
        control.check(later=timedelta(minutes=1))
        print("died", len(control.deaths), "times")
