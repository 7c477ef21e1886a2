from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.fake_api import FakeApi, Sublet, runner, serve, write_ready


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    server = serve(fake)
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sublet:
    """The command, with nothing in the environment that leads it to an instance."""
    for name in ("DATA", "URL", "KEY", "CA"):
        monkeypatch.delenv(f"SUBLET_{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return runner(capsys)


@pytest.fixture
def sublet(bare: Sublet, api: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sublet:
    """The command, beside a running instance whose API is `api`."""
    write_ready(folder, api.url)
    monkeypatch.setenv("SUBLET_DATA", str(folder))
    return bare
