"""What goes wrong is said in one line on stderr, with an exit code that says its kind."""

import socket
from pathlib import Path

import pytest
from tests.cli.fake_api import Answer, FakeApi, Sublet, as_json, error, write_ready


def test_no_running_instance(bare: Sublet, folder: Path) -> None:
    assert bare("status", "--data", str(folder)).failed_with(
        2,
        f"no running Sublet found in {folder}: start one with `make up` (or `sublet up`),"
        " or set SUBLET_URL and SUBLET_KEY",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged: it is not JSON"),
        ("\x00\xff", "is damaged: it is not JSON"),
        ("[]", "is damaged: it names no api_url"),
        ('{"api_url": 7}', "is damaged: it names no api_url"),
    ],
)
def test_a_ready_file_that_is_none(bare: Sublet, folder: Path, text: str, message: str) -> None:
    path = folder / "ready.json"
    path.write_text(text, encoding="latin-1")
    assert bare("status", "--data", str(folder)).failed_with(2, f"{path} {message}")


def test_a_ready_file_without_the_key_that_is_needed(bare: Sublet, folder: Path) -> None:
    write_ready(folder, "http://127.0.0.1:1", tenant_key=None)
    assert bare("wallet", "--data", str(folder)).failed_with(
        2, f"{folder}/ready.json holds no tenant_key: set SUBLET_KEY"
    )


def test_nobody_answers(bare: Sublet, folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        write_ready(folder, url)
        assert bare("status", "--data", str(folder)).failed_with(
            3, f"Sublet does not answer at {url}: Connection refused"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "http://x"], "SUBLET_URL needs a key: set SUBLET_KEY as well"),
        (
            ["--url", "ftp://x", "--key", "k"],
            "SUBLET_URL must begin with http:// or https://, not 'ftp://x'",
        ),
        (
            ["--url", "http://x", "--key", "clé"],
            "SUBLET_KEY is not a key: it must be plain ASCII on one line",
        ),
        (
            ["--url", "https://x", "--key", "k", "--ca", "/nope"],
            "cannot use the CA file /nope: No such file or directory",
        ),
    ],
)
def test_an_instance_that_cannot_be_meant(bare: Sublet, arguments: list[str], message: str) -> None:
    assert bare("status", *arguments).failed_with(2, message)


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (error("there is no surplus"), 1, "there is no surplus"),
        (error("busy", status=503, retryable=True), 1, "busy (try again)"),
        (error("two\nlines\x1b[2J"), 1, "two lines\ufffd[2J"),
    ],
)
def test_what_the_api_says_is_passed_on(
    sublet: Sublet, api: FakeApi, answer: Answer, code: int, message: str
) -> None:
    api.on("GET /v1/status", answer)
    assert sublet("status").failed_with(code, message)
    assert sublet("status", "--json").failed_with(code, message)


@pytest.mark.parametrize(
    "answer", [Answer(body=b"<html>"), Answer(body=b"[]"), Answer(status=502), Answer(status=302)]
)
def test_another_server_is_noticed(sublet: Sublet, api: FakeApi, answer: Answer) -> None:
    api.on("GET /v1/status", answer)
    said = f"{api.url}/v1/status answered {answer.status}, but not as Sublet does"
    assert sublet("status").failed_with(3, said)


def test_an_answer_that_breaks_off(sublet: Sublet, api: FakeApi) -> None:
    api.on("GET /v1/status", Answer(body=b"{}", broken=True))
    result = sublet("status")
    assert result.code == 3 and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "lease bogus",
            "no such command 'bogus'. Did you mean 'logs'? (see `sublet lease --help`)",
        ),
        ("lease create", "missing argument 'COMMAND' (see `sublet lease create --help`)"),
        (
            "lease create --max 1x -- true",
            "invalid value for '--max': '1x' is not a duration such as 90s, 15m, 1h30m or 7d (see `sublet lease create --help`)",
        ),
        (
            "lease create --tier gold -- true",
            "invalid value for '--tier': 'gold' is not one of 'interruptible', 'on_demand', 'reserved' (see `sublet lease create --help`)",
        ),
        (
            "lease create --env A -- true",
            "invalid value for --env: 'A' is not KEY=VALUE (see `sublet lease create --help`)",
        ),
        ("pool set cpu", "say what to change; `sublet pool set --help` lists it all"),
        ("tenant create \udcff", "the command line must be UTF-8"),
    ],
)
def test_a_wrong_command_line_sends_nothing(
    sublet: Sublet, api: FakeApi, arguments: str, message: str
) -> None:
    assert sublet(*arguments.split(" ")).failed_with(2, message)
    assert api.seen == []


def test_a_setting_that_cannot_be(bare: Sublet, folder: Path) -> None:
    result = bare("up", "--data", str(folder), "--api-port", "70000")
    assert result.failed_with(2, "SUBLET_API_PORT must lie in 0…65535")


def test_a_lease_that_may_have_been_taken_says_how_to_repeat(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/leases", Answer(broken=True))
    result = sublet("lease", "create", "--", "true")
    assert result.code == 3
    assert result.err.endswith(f"(to repeat safely: --id {api.seen[0].body['id']})\n")


def test_a_call_whose_answer_was_lost_is_sent_once_more_under_its_name(
    sublet: Sublet, api: FakeApi
) -> None:
    tenant = {"id": "1", "name": "acme"}
    api.on("POST /v1/tenants", Answer(broken=True), as_json(tenant, 201))
    assert sublet("tenant", "create", "acme", "--json").json == tenant
    first, second = api.seen
    assert first.named is not None and first == second
    api.on("POST /v1/tenants", Answer(broken=True))
    assert sublet("tenant", "create", "acme").code == 3
    third, fourth = api.seen[2:]
    assert third == fourth and third.named not in {None, first.named}


def test_what_is_not_named_is_not_sent_again(sublet: Sublet, api: FakeApi) -> None:
    api.on("POST /v1/chat/completions", Answer(broken=True))
    api.on("GET /v1/status", {})
    assert sublet("model", "chat", "gemma", "hi", "--json").code == 3
    assert [seen.named for seen in api.seen if seen.method == "POST"] == [None]


def test_an_instance_without_its_sandbox_is_warned_of(
    sublet: Sublet, api: FakeApi, folder: Path
) -> None:
    warning = "sublet: warning: this instance runs tenants' code without a sandbox\n"
    api.on("GET /v1/status", {"version": "1", "unsafe_no_sandbox": True})
    assert sublet("status").err == warning
    write_ready(folder, api.url, unsafe_no_sandbox=True)
    assert sublet("status").err == warning
    assert sublet("status", "--json").err == ""
