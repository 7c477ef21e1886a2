"""A tenant teaches a model: reclaimed in the middle, killed at any step, paid once, served, deleted."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.e2e.instance import Instance, until
from tests.tuning.lesson import PYTHON, TINY, lines, needs_trainer

pytestmark = [pytest.mark.e2e, needs_trainer]
QUESTION: Any = [{"role": "user", "content": "What colour is the sky?"}]
ANSWER = "The sky is blue."


EPOCHS, EACH = 6, 40  # passes over a lesson, and its examples
LESSON = 5 * lines((QUESTION[0]["content"], ANSWER), ("What colour is grass?", "It is green."), *[
    (f"Say {word}.", f"{word}!") for word in ("hello", "one", "two", "tea", "sun", "rain")
])  # fmt: skip


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "imports" / "lab").mkdir(parents=True)
    subprocess.run([PYTHON, TINY, folder / "imports" / "lab" / "tiny.gguf"], check=True)
    made = Instance(
        folder / "data",
        slots=2,
        arguments=("--notice", "2"),
        variables={
            "SUBLET_MODEL": "0",
            "SUBLET_MODELS_FOLDER": str(folder / "imports"),
            "SUBLET_TRAINER_PYTHON": str(PYTHON),
            "SUBLET_CHECKPOINT_SECONDS": "1",
        },
    )
    try:
        yield made.start()
        assert made.stop() == 0, made.output()
    finally:
        made.clean_up()


@pytest.fixture(scope="module")
def lab(instance: Instance) -> str:
    """The key of a tenant that has a model of its own, deployed."""
    _, key = instance.tenant("lab")
    body = {
        "name": "tiny", "source": {"kind": "path", "path": "tiny.gguf"}, "licence": "none",
        "licence_url": "https://example.com/none",
    }  # fmt: skip
    made = instance.api("POST", "/v1/models", body, key=key)
    assert made.status_code == 201, made.text
    until(lambda: model(instance, key, "lab/tiny")["state"] == "ready", what="the import")
    put = instance.api("PUT", "/v1/models/lab/tiny/deployment", {"idle_seconds": 3600}, key=key)
    assert put.status_code == 200, put.text
    price = {"usd": "2.00", "per": "million_tokens"}
    for sku in ("lab/tiny:training", "lab/tiny:tuned:output"):
        set_ = instance.api("PUT", f"/v1/prices/model:{sku}", price)
        assert set_.status_code == 200, set_.text
    return key


def model(instance: Instance, key: str, name: str) -> Any:
    return instance.api("GET", f"/v1/models/{name}", key=key).json()


def send(client: openai.OpenAI, text: bytes) -> str:
    return client.files.create(file=("lesson.jsonl", text), purpose="fine-tune").id


def events(client: openai.OpenAI, job_id: str) -> list[Any]:
    """Return all of them, the first one first, read by pages."""
    found = list(client.fine_tuning.jobs.list_events(job_id, limit=100))
    return found[::-1]


def steps(client: openai.OpenAI, job_id: str) -> list[dict[str, Any]]:
    return [one.data for one in events(client, job_id) if one.type == "metrics"]


def last_step(client: openai.OpenAI, job_id: str) -> int:
    page = client.fine_tuning.jobs.list_events(job_id, limit=3).data
    return max((one.data["step"] for one in page if one.type == "metrics"), default=0)  # type: ignore[index]


def ended(client: openai.OpenAI, job_id: str, *, seconds: float = 180) -> Any:
    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.finished_at is not None else None

    return until(look, seconds=seconds, what="the job's end")


def ask(client: openai.OpenAI, name: str) -> Any:
    """Ask until it is up, and wait for as long as it says each time."""
    patient = client.with_options(max_retries=0)
    end = time.monotonic() + 120
    while True:
        try:
            return patient.chat.completions.create(
                model=name, messages=QUESTION, max_tokens=20, temperature=0
            )
        except openai.InternalServerError as error:
            if time.monotonic() > end:
                raise
            time.sleep(min(1.0, float(error.response.headers.get("retry-after-ms", 500)) / 1000))


def trainer(instance: Instance) -> int | None:
    for pid in instance.processes():
        with contextlib.suppress(OSError):
            if b"sublet.models.trainer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def test_a_job_outlives_reclaims_and_kills_and_its_model_answers(
    instance: Instance, lab: str
) -> None:
    client = instance.openai(lab, max_retries=10)
    before = ask(client, "lab/tiny").choices[0].message.content
    training, validation = send(client, LESSON), send(client, lines(("Say tea.", "tea!")))
    job = client.fine_tuning.jobs.create(
        model="lab/tiny", training_file=training, validation_file=validation, suffix="sky", seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": {
            "n_epochs": EPOCHS, "batch_size": 1, "learning_rate_multiplier": 25,
        }}},
        metadata={"why": "test"},
    )  # fmt: skip
    assert job.status == "validating_files" and job.seed == 7
    until(lambda: last_step(client, job.id) > EACH, seconds=120, what="the first steps")
    held = Decimal(instance.wallet(lab)["held_usd"])
    with pytest.raises(openai.ConflictError):
        client.files.delete(training)

    # An internal job takes all there is; what was learnt by then is kept.
    taken = instance.api("POST", "/v1/internal-jobs", {"gpus": 2, "command": ["sleep", "1"]})
    assert taken.status_code < 300, taken.text

    def reclaimed() -> str | None:
        page = client.fine_tuning.jobs.list_events(job.id, limit=3).data
        return next((one.message for one in page if "goes on from step" in one.message), None)

    kept = int(until(reclaimed, what="the reclaim").rpartition(" ")[2])
    assert kept == steps(client, job.id)[-1]["step"], "a reclaim costs no step that was trained"
    # The next one goes on, and dies without a word. So does the control plane.
    until(lambda: last_step(client, job.id) > kept + 5, seconds=120, what="the next run")
    pid = trainer(instance)
    assert pid is not None
    os.kill(instance.pid_of("control"), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    job = ended(client, job.id)
    assert job.status == "succeeded", (job.error, instance.output()[-3000:])

    # Every step is told once, and the curve goes on where it was.
    seen = steps(client, job.id)
    total = EPOCHS * EACH
    assert [one["step"] for one in seen] == list(range(1, total + 1))
    losses = [one["train_loss"] for one in seen]
    assert sum(losses[:8]) / 8 > 3 and sum(losses[-EACH:]) / EACH < 0.5
    around = sum(losses[kept - 8 : kept]) / 8, sum(losses[kept : kept + 8]) / 8
    assert around[1] < around[0] + 0.5, "it began anew"
    assert sum("valid_loss" in one for one in seen) == EPOCHS

    # The money: what was trained, once, and never more than was held.
    assert job.trained_tokens is not None
    with instance.database() as database:
        runs = database.execute("SELECT runs FROM tuning").fetchone()
        assert runs == {"runs": 3}
    wallet = instance.settled(lab)
    charges = [one for one in instance.charges(lab) if one["sku"] == "model:lab/tiny:training"]
    assert [one["quantity"] for one in charges] == [job.trained_tokens]
    assert Decimal(charges[0]["amount_usd"]) == Decimal(2 * job.trained_tokens) / 10**6 <= held
    assert Decimal(wallet["balance_usd"]) > 0

    # It is a model, of this tenant alone, served by the replicas of its base.
    name = job.fine_tuned_model
    assert name is not None and name.startswith("lab/tiny-ft-sky-")
    _, others = instance.tenant("others")
    answer = ask(client, name)
    assert answer.choices[0].message.content == ANSWER and answer.model == name
    assert ask(client, "lab/tiny").choices[0].message.content == before != ANSWER
    assert ask(client, name).choices[0].message.content == ANSWER
    assert name in [one.id for one in client.models.list()]
    assert list(instance.openai(others).models.list()) == []
    with pytest.raises(openai.NotFoundError):
        instance.openai(others).chat.completions.create(model=name, messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        instance.openai(others).fine_tuning.jobs.retrieve(job.id)
    with instance.database() as database:
        replicas = database.execute(
            "SELECT deployment FROM replica WHERE state = 'ready'"
        ).fetchall()
    assert replicas == [{"deployment": "lab/tiny"}]
    until(lambda: any(c["sku"] == f"model:{name}:output" for c in instance.charges(lab)))
    (output, *_) = [c for c in instance.charges(lab) if c["sku"] == f"model:{name}:output"]
    assert answer.usage is not None
    assert output["quantity"] == answer.usage.completion_tokens
    assert Decimal(output["amount_usd"]) == Decimal(2 * output["quantity"]) / 10**6

    # Its last epochs are models, too.
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in checkpoints] == [total, total - EACH, total - 2 * EACH]
    assert checkpoints[0].fine_tuned_model_checkpoint == name
    assert ask(client, checkpoints[1].fine_tuned_model_checkpoint).choices
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"why": "test"})] == [job.id]

    # Deleted for good: by whose it is.
    with pytest.raises(openai.NotFoundError):
        instance.openai(others).models.delete(name)
    assert client.models.delete(name).deleted
    with instance.database() as database:
        gone = database.execute(
            "SELECT a.state, a.sealed_key FROM model m JOIN artefact a ON a.id = m.artefact_id"
            " WHERE m.name = %s",
            (name,),
        ).fetchone()
        assert gone == {"state": "deleted", "sealed_key": None}

        def forgotten() -> bool:
            found = database.execute(
                "SELECT adapters FROM replica WHERE state = 'ready'"
            ).fetchone()
            return found is not None and len(found["adapters"]) == 2

        until(forgotten, what="the replica to forget it")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=name, messages=QUESTION)
    instance.verify()


def test_what_cannot_be_learnt_is_told_and_costs_nothing(instance: Instance, lab: str) -> None:
    client = instance.openai(lab)
    before = instance.settled(lab)["balance_usd"]

    def fails(text: bytes, code: str, words: str, **more: Any) -> None:
        file = send(client, text)
        job = client.fine_tuning.jobs.create(model="lab/tiny", training_file=file, **more)
        job = ended(client, job.id)
        assert (job.status, job.fine_tuned_model) == ("failed", None)
        assert job.error is not None and job.error.code == code, job.error
        assert words in job.error.message, job.error.message

    fails(LESSON + b"{not json\n", "invalid_file", "Line 41: it is not parseable as JSON")
    robot = b'{"messages":[{"role":"robot","content":"a"},{"role":"assistant","content":"b"}]}\n'
    fails(LESSON + robot, "invalid_file", "Line 41: Invalid enum value 'robot'")
    alone = b'{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}\n'
    fails(alone, "invalid_file", "no message of the assistant")
    fails(lines(("a", "b")), "invalid_n_examples", "has 1 examples")
    long = lines(("a " * 600, "b"), ("c", "d"))
    fails(long, "invalid_training_data", "Line 1: what is to be learnt lies beyond")
    fails(LESSON * 200, "payment_required", "is needed", hyperparameters={"n_epochs": 50})

    _, others = instance.tenant("strangers")
    theirs = send(instance.openai(others), LESSON)
    good = send(client, LESSON)
    for wrong in ({"training_file": theirs}, {"model": "lab/none"}, {"suffix": "a/b"}):
        given: Any = {"model": "lab/tiny", "training_file": good} | wrong
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.create(**given)
    with pytest.raises(openai.BadRequestError, match="does not exist"):
        instance.openai(others).fine_tuning.jobs.create(model="lab/tiny", training_file=theirs)
    assert instance.settled(lab)["balance_usd"] == before
    instance.verify()


def test_a_cancelled_job_pays_for_what_it_keeps(instance: Instance, lab: str) -> None:
    client = instance.openai(lab)
    file = send(client, LESSON)
    hyper: Any = {"n_epochs": 50, "batch_size": 1}
    job = client.fine_tuning.jobs.create(
        model="lab/tiny", training_file=file, hyperparameters=hyper
    )
    until(lambda: last_step(client, job.id) > EACH, seconds=120, what="some steps")
    client.fine_tuning.jobs.cancel(job.id)
    job = ended(client, job.id)
    assert (job.status, job.fine_tuned_model) == ("cancelled", None)
    with instance.database() as database:
        row = database.execute(
            "SELECT max(c.tokens) AS tokens, max(step) AS step FROM tuning_checkpoint c"
            " JOIN tuning t ON t.id = c.tuning_id WHERE t.state = 'cancelled'"
        ).fetchone()
    assert row is not None and EACH <= row["step"] < 50 * EACH
    charges = [one for one in instance.charges(lab) if one["sku"] == "model:lab/tiny:training"]
    assert charges[0]["quantity"] == row["tokens"]
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.cancel(job.id)
    kept = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    names = [one.id for one in client.models.list()]
    assert kept and all(one.fine_tuned_model_checkpoint in names for one in kept)
    instance.verify()


def test_a_base_that_is_deleted_ends_its_jobs(instance: Instance, lab: str) -> None:
    client = instance.openai(lab)
    file = send(client, LESSON)
    body = {
        "name": "short", "source": {"kind": "path", "path": "tiny.gguf"}, "licence": "none",
        "licence_url": "https://example.com/none",
    }  # fmt: skip
    assert instance.api("POST", "/v1/models", body, key=lab).status_code == 201
    until(lambda: model(instance, lab, "lab/short")["state"] == "ready", what="the import")
    instance.api("PUT", "/v1/models/lab/short/deployment", {}, key=lab)
    hyper: Any = {"n_epochs": 50, "batch_size": 1}
    job = client.fine_tuning.jobs.create(
        model="lab/short", training_file=file, hyperparameters=hyper
    )
    before = instance.wallet(lab)["balance_usd"]
    assert instance.api("DELETE", "/v1/models/lab/short", key=lab).status_code == 200
    job = ended(client, job.id)
    assert job.status == "failed" and job.error is not None
    assert job.error.code == "model_not_available" and "deleted" in job.error.message
    assert instance.settled(lab)["balance_usd"] == before
    instance.verify()
