"""What each command asks of the API, with whose key, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.fake_api import (
    OPERATOR,
    TENANT,
    Answer,
    FakeApi,
    Sublet,
    as_json,
    error,
    write_ready,
)

from sublet.cli import logs, progress

ID = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
OTHER = "3fa99999-0000-0000-0000-000000000000"
LEASE: dict[str, Any] = {
    "id": ID, "state": "admitted", "pool": "cpu", "gpus": 1, "tier": "interruptible",
    "requested_at": "2026-01-01T12:00:00Z", "running_at": None, "end_reason": None,
    "exit_code": None, "charged_usd": "0.00",
}  # fmt: skip
ENDED = {**LEASE, "state": "ended", "end_reason": "completed", "exit_code": 3}
JOB = {"id": ID, "name": "train", "pool": "cpu", "gpus": 1, "state": "running"}
NAMED = {"id": ID, "name": "acme", "kind": "customer", "network_allowed": False}
NONE: dict[str, Any] = {"items": []}


@pytest.mark.parametrize(
    ("arguments", "call", "key", "body"),
    [
        ("status", "GET /v1/status", OPERATOR, None),
        ("surplus", "GET /v1/surplus", OPERATOR, None),
        ("asset list", "GET /v1/assets", OPERATOR, None),
        ("invoice list", "GET /v1/invoices", TENANT, None),
        ("invoice run", "POST /v1/invoices/run", OPERATOR, {}),
        (
            "invoice pay INV-000012 9.50 --reference x", "POST /v1/invoices/12/payments", OPERATOR,
            {"amount_usd": "9.50", "reference": "x"},
        ),
        ("invoice void 12 --why x", "POST /v1/invoices/12/void", OPERATOR, {"why": "x"}),
        (
            "invoice credit 12 5 --why x", "POST /v1/invoices/12/credit-notes", OPERATOR,
            {"amount_usd": "5", "why": "x"},
        ),
        (
            "invoice credit-line acme 50", f"PUT /v1/tenants/{ID}/credit-line", OPERATOR,
            {"amount_usd": "50"},
        ),
        (
            "invoice tax DE VAT 19 --from 2026-01-01", "POST /v1/taxes", OPERATOR,
            {"jurisdiction": "DE", "name": "VAT", "percent": "19", "valid_from": "2026-01-01",
             "valid_until": None},
        ),
        ("tenant list", "GET /v1/tenants", OPERATOR, None),
        ("tenant show acme", f"GET /v1/tenants/{ID}", OPERATOR, None),
        (
            "tenant create acme --network", "POST /v1/tenants", OPERATOR,
            {"name": "acme", "network_allowed": True},
        ),
        (
            "tenant credit acme 0.50", f"POST /v1/tenants/{ID}/credits", OPERATOR,
            {"amount_usd": "0.50"},
        ),
        (
            "tenant network acme on", f"PATCH /v1/tenants/{ID}", OPERATOR,
            {"network_allowed": True},
        ),
        ("key create --name ci", "POST /v1/keys", TENANT, {"name": "ci"}),
        (
            "key create --name ci --tenant acme", f"POST /v1/tenants/{ID}/keys", OPERATOR,
            {"name": "ci"},
        ),
        ("key list", "GET /v1/keys", TENANT, None),
        ("limit list", "GET /v1/limits", TENANT, None),
        ("limit set day 5", "PUT /v1/limits", TENANT, {"kind": "day", "amount": "5"}),
        (
            f"limit set streams 2 --tenant acme --of-key {ID}", f"PUT /v1/tenants/{ID}/limits",
            OPERATOR, {"kind": "streams", "amount": "2", "key_id": ID},
        ),
        ("limit remove day", "DELETE /v1/limits", TENANT, None),
        (f"key revoke {ID}", f"DELETE /v1/keys/{ID}", OPERATOR, None),
        ("wallet", "GET /v1/wallet", TENANT, None),
        (f"wallet --tenant {ID}", f"GET /v1/tenants/{ID}/wallet", OPERATOR, None),
        ("charges", "GET /v1/charges", TENANT, None),
        ("offers", "GET /v1/offers", TENANT, None),
        ("lease list", "GET /v1/leases", TENANT, None),
        ("lease list --as-operator", "GET /v1/leases", OPERATOR, None),
        ("lease show 3fa8", f"GET /v1/leases/{ID}", TENANT, None),
        ("lease end 3fa8 --as-operator", f"DELETE /v1/leases/{ID}", OPERATOR, None),
        ("lease notice 3fa8", f"GET /v1/leases/{ID}/notice", TENANT, None),
        ("internal list", "GET /v1/internal-jobs", OPERATOR, None),
        ("internal cancel 3fa8", f"DELETE /v1/internal-jobs/{ID}", OPERATOR, None),
        ("fleet", "GET /v1/fleet", OPERATOR, None),
        (
            "pool set cpu --notice 0 --not-lendable --limit none", "PATCH /v1/pools/cpu", OPERATOR,
            {"notice_seconds": 0, "lendable": False, "lending_limit": None},
        ),
        (
            ("pool set cpu --reserve 2 --firm 4h --confidence 0.999 --credit 50 --floor 1.50"
            " --quiet 22:00-06:00 --exclusive --yes"),
            "PATCH /v1/pools/cpu", OPERATOR,
            {
                "reserve": 2, "firm_seconds": 14_400, "firm_confidence": 0.999,
                "credit_percent": 50, "floor_usd_per_gpu_hour": "1.50",
                "quiet_hours": "22:00-06:00", "exclusive": True, "confirm": True,
            },
        ),
        (
            "pool set cpu --confidence none --floor none --quiet none", "PATCH /v1/pools/cpu",
            OPERATOR,
            {"firm_confidence": None, "floor_usd_per_gpu_hour": None, "quiet_hours": None},
        ),
        ("quotes", "GET /v1/quotes", TENANT, None),
        ("reservation list", "GET /v1/reservations", TENANT, None),
        (f"reservation show {ID}", f"GET /v1/reservations/{ID}", TENANT, None),
        ("credits", "GET /v1/credits", TENANT, None),
        ("lease checkpoint 3fa8", f"PUT /v1/leases/{ID}/checkpoint", TENANT, {}),
        ("contract list --as-operator", "GET /v1/contracts", OPERATOR, None),
        (f"contract show {ID}", f"GET /v1/contracts/{ID}", TENANT, None),
        (f"contract bill {ID} --from 2027-01-01T00Z", f"GET /v1/contracts/{ID}/bill", TENANT, None),
        (f"contract end {ID}", f"DELETE /v1/contracts/{ID}", TENANT, None),
        (
            "quote --window 2026-02-01T08:00Z/2026-02-01T20:00Z --gpus 2", "POST /v1/quotes",
            TENANT,
            {
                "gpus": 2, "tier": "reserved", "starts_at": "2026-02-01T08:00Z",
                "ends_at": "2026-02-01T20:00Z",
            },
        ),
        (
            "quote --pool cpu --gpus 2 --tier on_demand --max 2h --notice 2m --lifetime 5m",
            "POST /v1/quotes", TENANT,
            {
                "pool": "cpu", "gpus": 2, "tier": "on_demand", "max_seconds": 7200,
                "notice_seconds": 120, "lifetime_seconds": 300,
            },
        ),
        ("quote", "POST /v1/quotes", TENANT, {}),
        ("price list", "GET /v1/prices", OPERATOR, None),
        (
            (f"price set lease:cpu:on_demand 0.05 --per hour --tenant {ID}"
            " --from 2026-02-01T00:00Z --until 2026-03-01T00:00Z"),
            "PUT /v1/prices/lease%3Acpu%3Aon_demand", OPERATOR,
            {
                "usd": "0.05", "per": "hour", "tenant_id": ID,
                "valid_from": "2026-02-01T00:00Z", "valid_until": "2026-03-01T00:00Z",
            },
        ),
        (
            "price set model:m:output 0.15 --per million-tokens",
            "PUT /v1/prices/model%3Am%3Aoutput", OPERATOR,
            {"usd": "0.15", "per": "million_tokens"},
        ),
        (
            "price set lease:h200:interruptible 0.1 --per hour --exception launch",
            "PUT /v1/prices/lease%3Ah200%3Ainterruptible", OPERATOR,
            {"usd": "0.1", "per": "hour", "exception": "launch"},
        ),
        ("signals", "GET /v1/signals", OPERATOR, None),
        ("index", "GET /v1/trades", OPERATOR, None),
        ("price floor h200", "GET /v1/pools/h200/floor", OPERATOR, None),
        (
            "price floor h200 --watts 1000 --kwh 0.06 --capital 1.3 --share 1",
            "PUT /v1/pools/h200/floor", OPERATOR,
            {
                "watts": 1000.0, "pue": 1.3, "kwh_usd": "0.06", "wear_usd": "0",
                "support_usd": "0", "capital_usd": "1.3", "capital_share": 1.0,
            },
        ),
        ("model list", "GET /v1/deployments", OPERATOR, None),
        ("model start m", "PATCH /v1/deployments/m", OPERATOR, {"wanted": True}),
        ("model stop m", "PATCH /v1/deployments/m", OPERATOR, {"wanted": False}),
        ("verify", "GET /v1/audit", OPERATOR, None),
    ],
)  # fmt: skip
def test_what_a_command_asks(
    sublet: Sublet, api: FakeApi, arguments: str, call: str, key: str, body: object
) -> None:
    api.on("GET /v1/tenants", {"items": [NAMED]})
    api.on("GET /v1/leases", {"items": [LEASE]})
    api.on("GET /v1/internal-jobs", {"items": [JOB]})
    if call not in api.answers:
        api.on(call, {"items": [], "pools": [], "id": ID})
    result = sublet(*arguments.split())
    assert result.code == 0, result.err
    last = api.seen[-1]
    assert (f"{last.method} {last.path}", last.key, last.body) == (call, key, body)
    assert sublet(*arguments.split(), "--json").json is not None


def test_a_key_that_is_given_wins(sublet: Sublet, api: FakeApi, monkeypatch: Any) -> None:
    api.on("GET /v1/leases", NONE)
    monkeypatch.setenv("SUBLET_KEY", "sk-mine")
    sublet("lease", "list")
    sublet("lease", "list", "--key", "sk-flag")
    sublet("--key", "sk-root", "lease", "list")
    sublet("lease", "list", "--as-operator")
    assert [seen.key for seen in api.seen] == ["sk-mine", "sk-flag", "sk-root", OPERATOR]


def test_a_url_wins_over_a_folder(sublet: Sublet, api: FakeApi, folder: Path) -> None:
    write_ready(folder, "http://127.0.0.1:1")
    api.on("GET /v1/offers", NONE)
    assert sublet("offers", "--url", f"{api.url}/", "--key", "k").out == "(none)\n"


def test_tables_are_not_folded_for_programs(sublet: Sublet, api: FakeApi) -> None:
    long: dict[str, Any] = {**NAMED, "name": "n" * 150}
    api.on("GET /v1/tenants", {"items": [long, NAMED]})
    lines = sublet("tenant", "list").out.splitlines()
    assert len(lines) == 3 and long["name"] in lines[1]


def test_a_lease_is_asked_for_as_it_was_written(sublet: Sublet, api: FakeApi, folder: Path) -> None:
    (folder / "job.py").write_text("print(1)", encoding="ascii")
    api.on("POST /v1/leases", LEASE)
    result = sublet(
        "lease", "create", "--pool", "cpu", "--gpus", "2", "--tier", "on_demand", "--max", "1h30m",
        "--env", "A=1", "--env", "B=", "--file", f"{folder}/job.py:run.py", "--memory", "512M",
        "--network", "--id", ID, "--", "python3", "run.py", "--json", "-f", "--", "x",
    )  # fmt: skip
    assert result.code == 0 and ID in result.out and f"sublet lease logs -f {ID}" in result.out
    assert api.seen[0].body == {
        "id": ID, "pool": "cpu", "gpus": 2, "tier": "on_demand", "max_seconds": 5400,
        "environment": {"A": "1", "B": ""}, "files": {"run.py": "cHJpbnQoMSk="},
        "memory_bytes": 512 << 20, "network": True, "interactive": False,
        "resumable": False,
        "command": ["python3", "run.py", "--json", "-f", "--", "x"],
    }  # fmt: skip


def test_following_a_lease_prints_its_log_and_ends_as_it_did(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/leases", LEASE)
    api.on(f"GET /v1/leases/{ID}/logs", Answer(body=b"hello\n"), Answer(body=b"rest\n"))
    api.on(f"GET /v1/leases/{ID}", ENDED)
    result = sublet("lease", "create", "-f", "--", "true")
    assert (result.code, result.out) == (3, "hello\nrest\n")
    assert [s.query for s in api.seen if s.path.endswith("logs")] == [
        {"offset": "0", "follow": "true"},
        {"offset": "6"},
    ]
    api.on(f"GET /v1/leases/{ID}/logs", Answer(body=b"hello\n"))
    assert sublet("lease", "create", "-f", "--json", "--", "true").json == ENDED


def test_a_lease_that_never_ran_ends_badly(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/leases", {**ENDED, "exit_code": None, "end_reason": "credit_exhausted"})
    assert sublet("lease", "create", "--", "true").code == 1
    result = sublet("lease", "create", "--wait", "--", "true")
    assert result.code == 1 and "ended: credit_exhausted" in result.err


def test_a_log_that_breaks_off_is_taken_up_where_it_stood(
    sublet: Sublet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FIRST_WAIT_SECONDS", 0)
    path = f"GET /v1/leases/{ID}/logs"
    api.on(path, Answer(body=b"one\n", broken=True), Answer(body=b"two\n"))
    assert sublet("lease", "logs", "-f", ID).out == "one\ntwo\n"
    assert [seen.query["offset"] for seen in api.seen] == ["0", "4"]

    api.on(path, Answer(broken=True))
    result = sublet("lease", "logs", "-f", ID)
    assert result.code == 3 and result.err.count("\n") == 1

    api.on(path, Answer(broken=True), error("gone", status=404))
    assert sublet("lease", "logs", "-f", ID).failed_with(1, "gone")


def test_a_log_as_json_says_where_each_piece_stood(sublet: Sublet, api: FakeApi) -> None:
    api.on(f"GET /v1/leases/{ID}/logs", Answer(body="é\n".encode()))
    out = sublet("lease", "logs", ID, "--offset", "7", "--json").out
    assert json.loads(out) == {"offset": 7, "text": "é\n"}


@pytest.mark.parametrize("form", ["hledger", "beancount"])
def test_the_ledger_is_written_whole_or_not_at_all(
    sublet: Sublet, api: FakeApi, folder: Path, form: str
) -> None:
    path, file = "GET /v1/ledger/export", folder / "ledger"
    api.on(path, Answer(body="é\n".encode()))
    arguments = ("ledger", "export", "--format", form)
    assert sublet(*arguments).out == "é\n"
    assert sublet(*arguments, "--json").json == {"offset": 0, "text": "é\n"}
    assert sublet(*arguments, "--output", str(file)).out == f"{file}  3 bytes\n"
    written = {"output": str(file), "format": form, "bytes": 3}
    assert sublet(*arguments, "--output", str(file), "--json").json == written
    assert {(seen.key, seen.query["format"]) for seen in api.seen} == {(OPERATOR, form)}

    api.on(path, Answer(body=b"half", broken=True))
    assert sublet(*arguments, "--output", str(file)).code == 3
    api.on(path, error("not for you", status=403))
    assert sublet(*arguments, "--output", str(file)).failed_with(1, "not for you")
    assert file.read_text("utf-8") == "é\n"
    assert {found.name for found in folder.iterdir()} == {"ledger", "ready.json"}


def test_a_ledger_that_cannot_be_written_is_not_asked_for(
    sublet: Sublet, api: FakeApi, folder: Path
) -> None:
    file = folder / "none" / "ledger"
    assert sublet("ledger", "export", "--output", str(file)).failed_with(
        2, f"cannot write {file}: No such file or directory"
    )
    assert api.seen == []


def test_a_beginning_that_two_leases_share_is_refused(sublet: Sublet, api: FakeApi) -> None:
    api.on("GET /v1/leases", {"items": [LEASE, {**LEASE, "id": OTHER}]})
    api.on(f"DELETE /v1/leases/{ID}", LEASE)
    assert sublet("lease", "end", "3fa8").code == 0
    assert sublet("lease", "end", "3fa").code == 1
    api.on("GET /v1/leases", {"items": [LEASE, {**LEASE, "id": "3fa8" + OTHER[4:]}]})
    assert sublet("lease", "end", "3fa8").failed_with(
        1, "2 leases begin with '3fa8'; write more of the id"
    )


def test_an_internal_job_says_that_it_waits_and_ends_as_it_did(
    sublet: Sublet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sublet.cli.internal.uuid4", lambda: ID)
    monkeypatch.setattr("sublet.cli.workload.time.sleep", lambda _: None)
    pending = {**JOB, "state": "pending"}
    path = f"GET /v1/internal-jobs/{ID}"
    api.on("POST /v1/internal-jobs", pending)
    api.on(path, *[as_json(pending)] * 5, JOB, {**JOB, "state": "ended", "exit_code": 143})
    api.on(f"{path}/logs", Answer(body=b"trained\n"), Answer())
    result = sublet("internal", "run", "--slots", "1", "--env", "A=1", "--", "/bin/train", "-v")
    assert (result.code, result.out) == (143, "trained\n")
    assert result.err == f"sublet: internal job {ID} waits for 1 of cpu\n"
    assert api.seen[0].body == {
        "id": ID, "name": "train", "gpus": 1, "command": ["/bin/train", "-v"],
        "environment": {"A": "1"},
    }  # fmt: skip


def test_ctrl_c_cancels_an_internal_job_and_leaves_a_lease(
    sublet: Sublet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sublet.cli.workload.copy", interrupted)
    monkeypatch.setattr("sublet.cli.internal.uuid4", lambda: ID)
    api.on("POST /v1/internal-jobs", JOB)
    api.on(f"DELETE /v1/internal-jobs/{ID}", JOB)
    result = sublet("internal", "run", "--", "train")
    assert result.failed_with(130, f"internal job {ID} is cancelled")
    assert api.calls()[-1] == f"DELETE /v1/internal-jobs/{ID}"

    api.on("POST /v1/leases", LEASE)
    result = sublet("lease", "create", "-f", "--", "train")
    assert result.code == 130 and f"`sublet lease end {ID}` ends it" in result.err
    assert api.calls()[-1] == "POST /v1/leases"


def test_a_model_answers_through_the_gateway(sublet: Sublet, api: FakeApi) -> None:
    call = "POST /v1/chat/completions"
    events = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'
    api.on(call, Answer(body=events))
    result = sublet("model", "chat", "m", "Hello", "--max-tokens", "5")
    assert (result.code, result.out) == (0, "Hi\n")
    assert api.seen[0].key == TENANT
    assert api.seen[0].body == {
        "model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5,
        "stream": True,
    }  # fmt: skip
    api.on(call, {"choices": []})
    assert sublet("model", "chat", "m", "Hello", "--json").json == {"choices": []}
    api.on(call, error("no such model", status=404))
    assert sublet("model", "chat", "m", "Hello").failed_with(1, "no such model")


def test_the_audit_fails_on_any_difference(sublet: Sublet, api: FakeApi) -> None:
    document = {"laws": {}, "differences": [{"law": "money", "what": "wallet 7 is short"}]}
    api.on("GET /v1/audit", document)
    result = sublet("verify")
    assert result.code == 1 and "DIFFERENCE wallet 7 is short" in result.out
    assert sublet("verify", "--json").json == document


def test_the_audit_shows_how_far_it_is_on_a_terminal(
    sublet: Sublet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"laws": {"money": {"transfers": 3}}, "differences": []}
    lines = [{"progress": {"what": "every transfer", "done": 0.25}}, {"audit": document}]
    api.on(
        "GET /v1/audit", Answer(body=b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    )
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sublet.cli.progress._AFTER_SECONDS", 0.0)
    result = sublet("verify")
    assert result.code == 0 and "3 transfers" in result.out
    assert api.seen[-1].query == {"progress": "true"}
    failed = {"error": {"code": "unavailable", "message": "no answer", "retryable": True}}
    api.on("GET /v1/audit", Answer(body=json.dumps(failed).encode() + b"\n"))
    assert sublet("verify").code == 3
    api.on("GET /v1/audit", as_json(document))
    assert sublet("verify", "--json").json == document  # programs see no bar
    assert api.seen[-1].query == {}


def test_a_bar_is_drawn_after_a_while_and_taken_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    drawn = progress._Bar()
    drawn.tell("counting", 0.5)
    assert capsys.readouterr().err == ""
    drawn._draw()
    drawn.tell("counting on", 0.75)
    drawn.end()
    err = capsys.readouterr().err
    assert "counting on" in err and "75%" in err
    with progress.bar(wanted=False) as tell:
        tell("nothing", 1.0)
    assert capsys.readouterr().err == ""


def test_a_surplus_says_what_is_forecast_and_why_no_more_is_sold(
    sublet: Sublet, api: FakeApi
) -> None:
    now = {"gpus": 8, "internal_running": 3, "internal_pending": 0, "leased": 1, "sellable": 4}
    plan = {
        "made_at": "2026-01-01T12:00:01Z", "as_of": "2026-01-01T12:00:00Z", "known_hours": 30.0, "known_share": 0.75,
        "firm": {"1h": 4, "4h": 3, "24h": 0}, "interruptible": 4, "reserve": 1,
        "reasons": [{"reason": "cold_start", "windows": ["4h", "24h"], "why": "little is known"}],
        "band": [
            {"ahead_seconds": 300, "demand": {"0.5": 3, "0.99": 4}},
            {"ahead_seconds": 86400, "demand": {"0.5": 5, "0.99": 8}},
        ],
    }  # fmt: skip
    pools = [{"name": "h200", **now, "plan": plan}, {"name": "cpu", **now, "plan": None}]
    api.on("GET /v1/surplus", {"confidence": 0.99, "pools": pools})
    lines = [line.split() for line in sublet("surplus").out.splitlines()]
    assert lines[1] == [
        "h200",
        *["8", "3", "0", "1", "4", "3", "0", "4", "1", "4"],
        "2026-01-01",
        "12:00:00Z",
    ]
    assert ["cold_start", "(4h,", "24h):", "little", "is", "known"] in lines
    assert ["99%", "of", "the", "time", "no", "more", "than", "4", "8"] in lines
    assert "cpu: not planned yet" in sublet("surplus").out


def test_a_quote_is_accepted_as_it_is(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/leases", LEASE)
    assert sublet("lease", "create", "--quote", ID, "--id", ID, "--", "x").code == 0
    assert {"quote": ID, "id": ID, "command": ["x"]}.items() <= api.seen[0].body.items()
    assert not {"gpus", "tier", "max_seconds", "pool"} & set(api.seen[0].body)
    result = sublet("lease", "create", "--quote", ID, "--gpus", "2", "--", "x")
    assert result.code == 2 and "give --quote alone" in result.err


def test_a_window_is_reserved_with_what_starts_in_it(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/reservations", {"id": ID, "state": "booked"})
    window = "2026-02-01T08:00Z/2026-02-01T20:00Z"
    asked = ["lease", "create", "--tier", "reserved", "--gpus", "2", "--id", ID]
    assert sublet(*asked, "--window", window, "--", "x").code == 0
    assert api.seen[0].body == {
        "id": ID, "command": ["x"], "environment": {}, "files": {}, "network": False,
        "interactive": False, "gpus": 2,
        "starts_at": "2026-02-01T08:00Z", "ends_at": "2026-02-01T20:00Z",
    }  # fmt: skip
    assert sublet("reservation", "create", window).code == 0
    assert {"starts_at", "ends_at", "id"} == set(api.seen[1].body)
    for wrong, said in (
        ([*asked, "--", "x"], "give --window START/END"),
        ([*asked, "--window", "tomorrow", "--", "x"], "is no window such as"),
        ([*asked, "--window", window, "--max", "1h", "--", "x"], "takes no --max"),
        (["lease", "create", "--tier", "on_demand", "--window", window, "--", "x"], "reserved"),
    ):
        result = sublet(*wrong)
        assert result.code == 2 and said in result.err, result.err


def test_a_lease_is_drawn_on_a_reservation(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/leases", LEASE)
    assert sublet("lease", "create", "--reservation", ID, "--gpus", "2", "--", "x").code == 0
    body = api.seen[0].body
    assert {"reservation": ID, "gpus": 2, "command": ["x"]}.items() <= body.items()
    assert not {"tier", "max_seconds", "pool"} & set(body)


def test_a_contract_is_signed_step_by_step(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/contracts", {"id": ID, "steps": [{"gpus": 64}]})
    result = sublet(
        "contract", "sign", "h1", "--tenant", ID, "--until", "2027-07-01T00:00Z", "--step",
        "2027-01-01T00:00Z=64@1.90", "--step", "2027-03-01T00:00Z=128@1.80", "--minimum", "100000",
        "--recall-days", "90", "--shortfall", "50",
    )  # fmt: skip
    assert result.code == 0, result.err
    body = api.seen[0].body
    assert body.pop("id")
    assert body == {
        "name": "h1", "tenant_id": ID, "ends_at": "2027-07-01T00:00Z", "minimum_usd": "100000",
        "recall_days": 90, "shortfall_percent": 50,
        "steps": [
            {"starts_at": "2027-01-01T00:00Z", "gpus": 64, "usd_per_gpu_hour": "1.90"},
            {"starts_at": "2027-03-01T00:00Z", "gpus": 128, "usd_per_gpu_hour": "1.80"},
        ],
    }  # fmt: skip
    wrong = sublet("contract", "sign", "h1", "--tenant", ID, "--until", "x", "--step", "soon")
    assert wrong.code == 2 and "is no step such as" in wrong.err
