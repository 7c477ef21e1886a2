from dataclasses import fields
from pathlib import Path

import pytest

from sublet.config import Config, default_data, load, variable_of
from sublet.core.errors import Misconfigured


def test_with_nothing_set_every_setting_has_its_default() -> None:
    config = load({})
    assert config == Config(data=default_data().absolute())
    assert config.data.is_absolute()


def test_a_setting_comes_from_its_variable() -> None:
    environment = {
        "SUBLET_DATA": "/srv/sublet", "SUBLET_HOST": "::", "SUBLET_API_PORT": "0",
        "SUBLET_SLOTS": "7", "SUBLET_NOTICE_SECONDS": "30", "SUBLET_MODEL": "off",
        "SUBLET_UNSAFE_NO_SANDBOX": "TRUE", "DATABASE_URL": "postgresql://x",
        "SUBLET_UNKNOWN": "x",
    }  # fmt: skip
    config = load(environment)
    assert config.data == Path("/srv/sublet")
    assert (config.host, config.api_port, config.slots) == ("::", 0, 7)
    assert (config.model, config.unsafe_no_sandbox) == (False, True)
    assert config.database_url == "postgresql://x"


def test_the_command_line_wins_and_what_it_leaves_out_does_not() -> None:
    config = load({"SUBLET_SLOTS": "7", "SUBLET_HOST": "::1"}, slots=3, host=None, model=False)
    assert (config.slots, config.host, config.model) == (3, "::1", False)


def test_an_empty_variable_is_no_setting() -> None:
    assert load({"SUBLET_SLOTS": "", "DATABASE_URL": ""}) == load({})


@pytest.mark.parametrize(
    "config",
    [
        load({}),
        load({}, slots=3, model=False, database_url="postgresql://x", data=Path("/a b"), host="::"),
    ],
)
def test_a_child_is_told_the_same_settings(config: Config) -> None:
    assert load(config.to_environment()) == config
    assert set(config.to_environment()) <= {variable_of(field.name) for field in fields(Config)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("slots", "0"), ("slots", "4097"), ("slots", "-1"), ("slots", "two"), ("slots", "1.5"),
        ("slots", "\uff11"), ("slots", " 2"), ("slots", "9" * 5000), ("api_port", "65536"),
        ("gateway_port", "http"), ("gateway_http_port", "-1"), ("notice_seconds", "86401"),
        ("model", "maybe"), ("unsafe_no_sandbox", "2"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_with_its_name(name: str, text: str) -> None:
    with pytest.raises(Misconfigured, match=variable_of(name)):
        load({variable_of(name): text})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:7070"),
        ("0.0.0.0", "http://127.0.0.1:7070"),  # noqa: S104 -- compared, not bound
        ("::", "http://127.0.0.1:7070"),
        ("fd00::1", "http://[fd00::1]:7070"),
        ("gpu.example", "http://gpu.example:7070"),
    ],
)
def test_addresses_can_be_called(host: str, url: str) -> None:
    assert load({}, host=host).api_url == url
