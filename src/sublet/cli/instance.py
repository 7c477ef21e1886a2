"""Which Sublet a command talks to, and with whose key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Self

from sublet.cli.failure import ExitCode, Failure
from sublet.config import default_data


class Role(Enum):
    """Whose key a command uses when none is given."""

    OPERATOR = auto()
    TENANT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that every command has, as they were given: None where they were not."""

    data: str | None = None
    url: str | None = None
    key: str | None = None
    ca: str | None = None
    json: bool = False

    def over(self, outer: Self) -> Self:
        """Return these options, with those of `outer` where these were not given."""
        return type(self)(
            data=self.data or outer.data,
            url=self.url or outer.url,
            key=self.key or outer.key,
            ca=self.ca or outer.ca,
            json=self.json or outer.json,
        )

    def or_environment(self, environ: Mapping[str, str]) -> Self:
        return self.over(
            type(self)(
                data=environ.get("SUBLET_DATA") or None,
                url=environ.get("SUBLET_URL") or None,
                key=environ.get("SUBLET_KEY") or None,
                ca=environ.get("SUBLET_CA") or None,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    api_url: str
    key: str
    ca_file: str | None
    here: bool  # found by its ready.json: it runs on this machine
    unsafe_no_sandbox: bool = False
    gateway_url: str | None = None
    gateway_http_url: str | None = None


def find(options: Options, role: Role, *, own_key: bool = False) -> Instance:
    """Return the instance that `options` name, and the key to use there.

    A URL wins over a data folder, and a key that was given over the folder's keys; with
    `own_key`, the folder's key for `role` wins over one that was given.

    Raises:
        Failure: nothing runs there, or what is there cannot be used.
    """
    if options.url is not None:
        if options.key is None:
            raise Failure("SUBLET_URL needs a key: set SUBLET_KEY as well", ExitCode.USAGE)
        return Instance(
            api_url=_url(options.url, "SUBLET_URL"),
            key=_key(options.key, "SUBLET_KEY"),
            ca_file=options.ca,
            here=False,
        )
    folder = Path(options.data).expanduser() if options.data else default_data()
    ready = _read_ready(folder)
    name = "operator_key" if role is Role.OPERATOR else "tenant_key"
    if options.key is not None and not own_key:
        key = _key(options.key, "SUBLET_KEY")
    elif ready.get(name):
        key = _key(str(ready[name]), name)
    else:
        raise Failure(f"{folder}/ready.json holds no {name}: set SUBLET_KEY", ExitCode.USAGE)
    return Instance(
        api_url=_url(str(ready["api_url"]), f"api_url in {folder}/ready.json"),
        key=key,
        ca_file=options.ca or ready.get("ca_file"),
        here=True,
        unsafe_no_sandbox=ready.get("unsafe_no_sandbox") is True,
        gateway_url=ready.get("gateway_url"),
        gateway_http_url=ready.get("gateway_http_url"),
    )


def _read_ready(folder: Path) -> dict[str, Any]:
    path = folder / "ready.json"
    try:
        ready = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise Failure(
            f"no running Sublet found in {folder}: start one with `make up` (or `sublet up`),"
            " or set SUBLET_URL and SUBLET_KEY",
            ExitCode.USAGE,
        ) from None
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", ExitCode.USAGE) from None
    except ValueError:
        raise Failure(f"{path} is damaged: it is not JSON", ExitCode.USAGE) from None
    if not isinstance(ready, dict) or not isinstance(ready.get("api_url"), str):
        raise Failure(f"{path} is damaged: it names no api_url", ExitCode.USAGE)
    return ready


def _url(text: str, what: str) -> str:
    if not text.startswith(("http://", "https://")) or not text.isprintable():
        raise Failure(
            f"{what} must begin with http:// or https://, not {text[:60]!r}", ExitCode.USAGE
        )
    return text.rstrip("/")


def _key(text: str, what: str) -> str:
    """Headers are ASCII on one line; anything else cannot be a key of ours."""
    text = text.strip()
    if not text or not text.isascii() or not text.isprintable():
        raise Failure(f"{what} is not a key: it must be plain ASCII on one line", ExitCode.USAGE)
    return text
