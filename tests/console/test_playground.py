"""The playground, through a real gateway: what is shown is what is charged, to a key of the session."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from playwright.sync_api import sync_playwright
from starlette.testclient import TestClient
from tests.console.house import PASSWORD, Browser
from tests.gateway.stage import MODEL, Stage, eventually, raised

from sublet.app.admissions import Admissions
from sublet.app.control import build_api
from sublet.app.secrets import VAULT
from sublet.app.services import Services
from sublet.config import Config
from sublet.core import certificates
from sublet.core.clock import SystemClock
from sublet.core.net import free_port
from sublet.core.vault import Vault
from sublet.engine.simulated import SimulatedEngine
from sublet.tenants import people
from sublet.tenants import store as tenants
from sublet.tenants.person import PersonRole
from sublet.tenants.tenant import Tenant

HTTPS_PORT = free_port()


@pytest.fixture
def stage(database_url: str, folder: Path) -> Iterator[Stage]:
    made = certificates.ensure(folder / "tls", hosts=[], now=datetime.now(UTC))
    with raised(database_url, folder) as stage:
        stage.start(
            https_port=HTTPS_PORT, certificate=str(made.server), private_key=str(made.server_key)
        )
        yield stage


def console_of(stage: Stage, tenant: Tenant) -> tuple[Any, str]:
    """Return a console over the gateway's database, and an invitation of `tenant`."""
    clock, db, folder = SystemClock(), stage.db, stage.folder
    Vault(folder / VAULT).prepare()
    engine = SimulatedEngine([], clock)
    services = Services(
        config=Config(
            data=folder, gateway_port=HTTPS_PORT, gateway_http_port=urlsplit(stage.url).port or 0
        ),
        db=db, engine=engine, internal_queue=None, clock=clock, replicas=None, artefacts=folder,
        admissions=Admissions(db, jobs=engine.internal_jobs, clock=clock), signing_key="key",
        refuses_commands=None, wake=lambda: None,
    )  # fmt: skip
    with db.transaction() as tx:
        _, token = people.invite(
            tx, PersonRole.TENANT_MEMBER, tenant_id=tenant.id, email=None, made_by=None,
            now=clock.now(),
        )  # fmt: skip
    return build_api(services), token


def member_of(stage: Stage, tenant: Tenant) -> Browser:
    """Return the browser of somebody of `tenant`."""
    app, token = console_of(stage, tenant)
    browser = Browser.__new__(Browser)
    browser.client = TestClient(app, base_url="http://console.test", follow_redirects=False)
    assert browser.accept(token, email="ada@example.com", password=PASSWORD).status_code == 303
    return browser


def chat(browser: Browser, text: str, **more: str) -> list[dict[str, object]]:
    messages = json.dumps([{"role": "user", "content": text}])
    answer = browser.post("/playground/chat", model=MODEL, messages=messages, **more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    parts = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
    return [json.loads(part) for part in parts if part != "[DONE]"]


def test_an_answer_comes_in_parts_with_its_cost_and_is_charged_to_the_session(
    stage: Stage,
) -> None:
    tenant, _ = stage.tenant()
    browser = member_of(stage, tenant)
    page = browser.get("/playground").text
    assert f'<option value="{MODEL}"' in page and '"context_tokens"' in page
    events = chat(browser, "Hi", max_tokens="8", temperature="0")
    assert sum(bool(one["choices"]) for one in events) > 2
    (last,) = [one for one in events if one.get("usage")]
    charged = last["sublet"]["charge_nanos"]  # type: ignore[index]
    assert charged > 0
    stage.paid(tenant, charged)
    with stage.db.transaction() as tx:
        names = {key.id: key.name for key in tenants.list_keys(tx, tenant.id)}
    assert names[stage.usage(tenant)["api_key_id"]] == "playground of Ada"
    assert list(names.values()).count("playground of Ada") == 1
    with stage.db.transaction() as tx:
        (mine,) = [id_ for id_, name in names.items() if name == "playground of Ada"]
        tenants.revoke_key(tx, mine, tenant_id=tenant.id, now=SystemClock().now())
    eventually(lambda: "error" in chat(browser, "Hi", max_tokens="1")[0])
    (refused,) = chat(browser, "Hi")
    assert "revoked" in str(refused["error"])
    stage.check_books()


def test_a_person_asks_in_a_browser_and_the_code_that_is_shown_does_the_same(
    stage: Stage,
) -> None:
    tenant, key = stage.tenant()
    app, token = console_of(stage, tenant)
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1)
    )
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        shown = _in_a_browser(f"http://127.0.0.1:{port}/console", token)
    finally:
        server.should_exit = True
        serving.join()
    said, cost, codes = shown
    assert "What is 1 + 1?" in said and "tok tok" in said
    stage.paid(tenant, round(float(cost.removeprefix("$")) * 1e9))
    for sdk, code in codes.items():
        assert "What is 1 + 1?" in code
        ours = code.replace("sk-sublet-…", key)
        command = ["sh", "-c", ours] if sdk == "curl" else [sys.executable, "-c", ours]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False,
            cwd=stage.folder / "tls", env=os.environ | {"SSL_CERT_FILE": "ca.pem"},
        )  # fmt: skip
        assert ran.returncode == 0, (sdk, ran.stderr)
        assert "tok" in ran.stdout, (sdk, ran.stdout)
    eventually(lambda: len(stage.usages(tenant)) == 5)


def _in_a_browser(console: str, token: str) -> tuple[str, str, dict[str, str]]:
    """Return what was said, what it cost, and the call as code by SDK."""
    wrong: list[str] = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = chromium.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{console}/welcome/{token}")
        for name, value in (("name", "Ada"), ("email", "ada@example.com")):
            page.fill(f"[name={name}]", value)
        for name in ("password", "password_again"):
            page.fill(f"[name={name}]", PASSWORD)
        page.click("button.main")
        page.click("nav >> text=Playground")
        page.fill(".compose textarea", "What is 1 + 1?")
        page.press(".compose textarea", "Enter")
        page.wait_for_selector(".m-speed:has-text('first after')")
        said, cost = page.inner_text(".said"), page.inner_text(".m-cost")
        codes = {}
        for sdk in ("openai", "anthropic", "boto3", "curl"):
            page.click(f"[data-sdk={sdk}]")
            codes[sdk] = page.inner_text("#play-code")
        chromium.close()
    assert wrong == []
    return said, cost, codes
