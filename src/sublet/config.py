"""Every setting, read once into one frozen value.

A setting comes from the command line, else from the environment variable named beside it,
else from its default. `docs/operate/settings.md` lists them; a test holds it to this file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from sublet.core.errors import Misconfigured


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    data: Path  # SUBLET_DATA: everything this instance keeps
    host: str = "127.0.0.1"  # SUBLET_HOST: the address that the API and the gateway listen on
    api_port: int = 7070  # SUBLET_API_PORT: API and console; 0 takes a free one
    gateway_port: int = 7443  # SUBLET_GATEWAY_PORT: the gateway's https
    gateway_http_port: int = 7080  # SUBLET_GATEWAY_HTTP_PORT: the gateway's http, loopback only
    gateway_name: str = "gateway-0"  # SUBLET_GATEWAY_NAME: one process a name on one database
    gateway_workers: int = 1  # SUBLET_GATEWAY_WORKERS: gateway processes that share its ports
    slots: int | None = None  # SUBLET_SLOTS: CPU slots where there is no GPU; default: one a core
    notice_seconds: int = 10  # SUBLET_NOTICE_SECONDS: first policy of a new pool
    confidence: float = 0.99  # SUBLET_CONFIDENCE: share of firm GPU-windows that must hold
    model: bool = True  # SUBLET_MODEL: host the demo model
    models_folder: Path | None = None  # SUBLET_MODELS_FOLDER: models are imported from it
    models_s3: str | None = None  # SUBLET_MODELS_S3: addresses of stores to import from, by commas
    model_bytes: int = 1 << 40  # SUBLET_MODEL_BYTES: of models that one tenant may keep
    file_bytes: int = 512 << 20  # SUBLET_FILE_BYTES: of one file that a tenant sends to the gateway
    recipes: Path | None = None  # SUBLET_RECIPES: a folder of serving recipes of yours
    # SUBLET_TRAINER_PYTHON: has what fine-tuning needs, where our own does not
    trainer_python: Path | None = None
    checkpoint_seconds: float = 60.0  # SUBLET_CHECKPOINT_SECONDS: between two of a fine-tuning job
    engine: str = "local"  # SUBLET_ENGINE: what runs the work, local or slurm
    images: Path | None = None  # SUBLET_IMAGES: the folder of unpacked images for leases
    slurm: Path | None = None  # SUBLET_SLURM: the file with the settings of the Slurm cluster
    keep_logs_days: int = 30  # SUBLET_KEEP_LOGS_DAYS: of workloads that ended
    purse_seconds: float = 60.0  # SUBLET_PURSE_SECONDS: money is held ahead after the last request
    gateway_settings: Path | None = None  # SUBLET_GATEWAY_SETTINGS: what may change while it runs
    gateway_traces: str | None = None  # SUBLET_GATEWAY_TRACES: where an OTLP collector takes traces
    gateway_traces_share: float = 1.0  # SUBLET_GATEWAY_TRACES_SHARE: of calls that are traced
    seller: str = "Sublet"  # SUBLET_SELLER: who issues invoices: name and address, on one line
    seller_country: str | None = None  # SUBLET_SELLER_COUNTRY: of two letters; e-invoices need it
    seller_tax_id: str | None = None  # SUBLET_SELLER_TAX_ID: of value added tax, on e-invoices
    seller_endpoint: str | None = (
        None  # SUBLET_SELLER_ENDPOINT: the seller's address for e-invoices
    )
    smtp: str | None = None  # SUBLET_SMTP: the mail server, such as smtps://user:password@host:465
    mail_from: str | None = None  # SUBLET_MAIL_FROM: whose address e-mails are from
    console_url: str | None = None  # SUBLET_CONSOLE_URL: where browsers find the API's address
    oidc_issuer: str | None = None  # SUBLET_OIDC_ISSUER: who signs people in, by OpenID Connect
    oidc_client_id: str | None = None  # SUBLET_OIDC_CLIENT_ID: as whom that provider knows us
    oidc_client_secret: str | None = None  # SUBLET_OIDC_CLIENT_SECRET: the password for that
    unsafe_no_sandbox: bool = False  # SUBLET_UNSAFE_NO_SANDBOX: run tenants' code unguarded
    database_url: str | None = None  # DATABASE_URL: a PostgreSQL of yours, 15 or newer

    @property
    def api_url(self) -> str:
        return f"http://{self._host}:{self.api_port}"

    @property
    def public_url(self) -> str:
        """Return the address that people's browsers go to, without a / at its end."""
        return self.api_url if self.console_url is None else self.console_url.rstrip("/")

    @property
    def gateway_url(self) -> str:
        return f"https://{self._host}:{self.gateway_port}"

    @property
    def gateway_http_url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_http_port}"

    @property
    def _host(self) -> str:
        if self.host in {"0.0.0.0", "::"}:  # noqa: S104 -- compared, not bound
            return "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host

    def to_environment(self) -> dict[str, str]:
        """Return the variables from which `load` makes this value again, for a child."""
        environment = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = ("1" if value else "0") if isinstance(value, bool) else str(value)
                environment[variable_of(field.name)] = text
        return environment


def default_data() -> Path:
    return Path("~/.local/share/sublet").expanduser()


_FLAGS: Final = {"1": True, "true": True, "on": True, "yes": True,
                 "0": False, "false": False, "off": False, "no": False}  # fmt: skip
_PORTS: Final = frozenset({"api_port", "gateway_port", "gateway_http_port"})


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return "DATABASE_URL" if name == "database_url" else f"SUBLET_{name.upper()}"


def load(environment: Mapping[str, str] | None = None, **overrides: Any) -> Config:
    """Read the settings. `overrides` come from the command line and win.

    Raises:
        Misconfigured: names the setting, what is wrong with it, and what it may be.
    """
    environment = os.environ if environment is None else environment
    config = Config(data=default_data())
    kinds = {field.name: field.type for field in fields(Config)}
    for name, kind in kinds.items():
        given = overrides.pop(name, None)
        text = environment.get(variable_of(name)) or None
        if given is not None:
            value = given
        elif text is not None:
            value = _parse(variable_of(name), text, str(kind))
        else:
            continue
        config = replace(config, **{name: value})
    assert not overrides, overrides
    for name in _PORTS:
        if not 0 <= getattr(config, name) <= 65_535:
            raise Misconfigured(f"{variable_of(name)} must lie in 0…65535")
    if not 1 <= config.gateway_workers <= 256:
        raise Misconfigured("SUBLET_GATEWAY_WORKERS must lie in 1…256")
    if config.gateway_traces is not None and not config.gateway_traces.startswith(
        ("http://", "https://")
    ):
        raise Misconfigured(
            "SUBLET_GATEWAY_TRACES must be an address of OTLP over http, such as"
            " http://127.0.0.1:4318/v1/traces"
        )
    if not 0 <= config.gateway_traces_share <= 1:
        raise Misconfigured("SUBLET_GATEWAY_TRACES_SHARE must lie in 0…1")
    if config.slots is not None and not 1 <= config.slots <= 4096:
        raise Misconfigured("SUBLET_SLOTS must lie in 1…4096")
    if config.engine not in {"local", "slurm"}:
        raise Misconfigured(f"SUBLET_ENGINE must be local or slurm, not {config.engine[:40]!r}")
    if (config.engine == "slurm") != (config.slurm is not None):
        raise Misconfigured(
            "SUBLET_ENGINE=slurm and SUBLET_SLURM go together: the second names the file with the"
            " settings of the cluster"
        )
    if config.seller_country and not re.fullmatch("[A-Z]{2}", config.seller_country):
        raise Misconfigured("SUBLET_SELLER_COUNTRY must be two letters such as GB")
    if config.seller_endpoint and not re.fullmatch(r"[0-9]{4}:\S{1,50}", config.seller_endpoint):
        raise Misconfigured(
            "SUBLET_SELLER_ENDPOINT must be the four digits of a scheme and an id, such as"
            " 0088:7300010000001"
        )
    if config.smtp is not None and not re.fullmatch(r"smtps?://[^/?#\s]+", config.smtp):
        raise Misconfigured(
            "SUBLET_SMTP must be a mail server such as smtp://user:password@host:587"
        )
    if (config.smtp is None) != (config.mail_from is None):
        raise Misconfigured("SUBLET_SMTP and SUBLET_MAIL_FROM go together")
    for name in ("console_url", "oidc_issuer"):
        if not re.fullmatch(r"https?://[^?#\s]+", getattr(config, name) or "http://none"):
            raise Misconfigured(f"{variable_of(name)} must be an address: http:// or https://")
    oidc = (config.oidc_issuer, config.oidc_client_id, config.oidc_client_secret)
    if len({part is None for part in oidc}) > 1:
        raise Misconfigured(
            "SUBLET_OIDC_ISSUER, SUBLET_OIDC_CLIENT_ID and SUBLET_OIDC_CLIENT_SECRET go together"
        )
    if config.model_bytes < 0:
        raise Misconfigured("SUBLET_MODEL_BYTES must not be below 0")
    if config.file_bytes < 1:
        raise Misconfigured("SUBLET_FILE_BYTES must not be below 1")
    if not 0 < config.checkpoint_seconds <= 86_400:
        raise Misconfigured("SUBLET_CHECKPOINT_SECONDS must be above 0, and no more than a day")
    if config.trainer_python is not None and not config.trainer_python.is_file():
        raise Misconfigured(
            f"SUBLET_TRAINER_PYTHON must be a Python that there is, not {config.trainer_python}"
        )
    for name in ("models_folder", "recipes"):
        path = getattr(config, name)
        if path is not None and not path.is_dir():
            raise Misconfigured(f"{variable_of(name)} must be a folder that there is, not {path}")
    if not 0 <= config.notice_seconds <= 86_400:
        raise Misconfigured("SUBLET_NOTICE_SECONDS must lie in 0…86400")
    if not 1 <= config.keep_logs_days <= 36_500:
        raise Misconfigured("SUBLET_KEEP_LOGS_DAYS must lie in 1…36500")
    if not 0.1 <= config.purse_seconds <= 60:
        raise Misconfigured("SUBLET_PURSE_SECONDS must lie in 0.1…60")
    if not 0.5 <= config.confidence <= 0.9999:
        raise Misconfigured("SUBLET_CONFIDENCE must lie in 0.5…0.9999")
    return replace(config, data=Path(config.data).expanduser().absolute())


def _parse(variable: str, text: str, kind: str) -> object:
    if "bool" in kind:
        if (flag := _FLAGS.get(text.lower())) is None:
            raise Misconfigured(f"{variable} must be 1 or 0, not {text!r}")
        return flag
    if "int" in kind:
        if not re.fullmatch("[0-9]{1,18}", text):
            raise Misconfigured(f"{variable} must be a whole number, not {text!r}")
        return int(text)
    if "float" in kind:
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
            raise Misconfigured(f"{variable} must be a number such as 0.99, not {text!r}")
        return float(text)
    return Path(text) if "Path" in kind else text
