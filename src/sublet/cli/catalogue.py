"""`sublet model …` of the catalogue: bringing models, deploying and deleting them."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.failure import Failure
from sublet.cli.leases import AsOperator
from sublet.cli.output import Column, Document, text, usd
from sublet.cli.progress import bar

if TYPE_CHECKING:
    from sublet.cli.client import Client

_GIB: Final = 1 << 30
_TRIES: Final = 3  # of a part, when the connection breaks
_LOOK_SECONDS: Final = 0.5
_ASIDE: Final = frozenset({".git", ".cache"})  # of who downloaded it


def _size(value: object) -> str:
    return f"{value / _GIB:.2f} GiB" if isinstance(value, int) else ""


def _millions(value: object) -> str:
    return f"{value / 1e6:,.0f} M" if isinstance(value, int) else ""


def _number(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else ""


def _replicas(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    if not value["wanted"]:
        return "stopped"
    bounds = f"{value['min_replicas']} to {value['max_replicas']}"
    return f"{value['ready']} of {value['target']} ready ({bounds})"


MODEL = (
    Column("model", "name"),
    Column("state", "state"),
    Column("replicas", "deployment", _replicas),
    Column("architecture", "architecture"),
    Column("parameters", "parameters", _millions, right=True),
    Column("size", "bytes", _size, right=True),
    Column("context", "context_tokens", right=True),
    Column("recipe", "recipe"),
    Column("tokens/s", "tokens_per_second", right=True),
    Column("licence", "licence"),
    Column("detail", "detail"),
)
RECIPE = (
    Column("recipe", "name"),
    Column("engine", "engine"),
    Column("formats", "formats", lambda value: ", ".join(value) if isinstance(value, list) else ""),
    Column("GPUs", "gpus", right=True),
    Column("memory", "memory_bytes", _size, right=True),
    Column("context", "context_tokens", right=True),
    Column("input", "input_usd", right=True),
    Column("output", "output_usd", right=True),
)

Licence = Annotated[
    str,
    typer.Option("--licence", metavar="TERMS", help="Under which it may be served; yours to know."),
]
LicenceUrl = Annotated[str, typer.Option("--licence-url", metavar="URL", help="Where they are.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", metavar="NAME", help="`sublet model recipes` lists them.")
]
Context = Annotated[
    int | None, typer.Option("--context", min=1, metavar="N", help="Tokens, at most.")
]
Template = Annotated[
    Path | None,
    typer.Option("--chat-template", metavar="FILE", help="Jinja; default: the weights' own."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
OwnName = Annotated[
    str, typer.Argument(metavar="NAME", help="Yours; others see none of your models.")
]


ECONOMICS = (
    Column("model", "model"),
    Column("pool", "pool"),
    Column("GPU-hours", "gpu_hours", right=True),
    Column("tokens/s", "tokens_per_second", _number, right=True),
    Column("load", "load", _percent, right=True),
    Column("break-even", "break_even_load", _percent, right=True),
    Column("margin", "margin", _percent, right=True),
    Column("cost/M tokens", "cost_usd_per_million", usd, right=True),
    Column("earns/GPU-hour", "revenue_usd_per_gpu_hour", usd, right=True),
    Column("full", "full_usd_per_gpu_hour", usd, right=True),
    Column("rental", "rental_usd_per_gpu_hour", usd, right=True),
    Column("bid", "bid_usd_per_gpu_hour", usd, right=True),
    Column("floor/M output", "output_floor_usd_per_million", usd, right=True),
    Column("floor today", "output_floor_today_usd_per_million", usd, right=True),
)


def add_group(root: typer.Typer) -> None:
    group = new_group(
        "What hosted models cost and earn.", examples=("sublet models economics --hours 24",)
    )
    root.add_typer(group, name="models")
    command(
        group, "economics",
        examples=("sublet models economics", "sublet models economics --hours 1 --json"),
    )(economics)  # fmt: skip


def add_to(group: typer.Typer) -> None:
    command(group, "catalogue", examples=("sublet model catalogue",))(catalogue)
    command(group, "recipes", examples=("sublet model recipes",))(recipes)
    command(group, "show", examples=("sublet model show acme/mine",))(show)
    command(
        group, "upload",
        examples=(
            "sublet model upload mine model.gguf --licence apache-2.0",
            "sublet model upload mine ./folder-in-hugging-face-layout --licence apache-2.0",
        ),
    )(upload)  # fmt: skip
    command(
        group, "import",
        examples=(
            "sublet model import mine path/beneath/the/folder --licence apache-2.0",
            "sublet model import mine s3://bucket/prefix --endpoint https://s3.example.com --licence mit",
        ),
    )(import_)  # fmt: skip
    command(
        group, "deploy",
        examples=(
            "sublet model deploy acme/mine --max 2",
            "sublet model deploy gemma-3-270m --min 1 --max 4 --tier on_demand --operator",
        ),
    )(deploy)  # fmt: skip
    command(group, "measure", examples=("sublet model measure gemma-3-270m",))(measure)
    command(group, "undeploy", examples=("sublet model undeploy acme/mine",))(undeploy)
    command(group, "delete", examples=("sublet model delete acme/mine --yes",))(delete)


def economics(
    session: Session,
    *,
    hours: Annotated[int, typer.Option(min=1, max=744, metavar="N", help="Looked back.")] = 24,
) -> None:
    """Show what each model cost and earned, its break-even load, and what leases would pay."""
    with session.operator() as api:
        session.show_items(api.get("/v1/economics", hours=hours), ECONOMICS)


def measure(session: Session, name: Name) -> None:
    """Measure how many tokens a second one replica makes with its slots full."""
    with session.operator() as api:
        session.show(api.post_slow(f"{_path(name)}/measure", {}), MODEL)


def catalogue(session: Session, *, as_operator: AsOperator = False) -> None:
    """List your models; with the operator's key, everybody's."""
    with session.tenant(as_operator=as_operator) as api:
        session.show_items(api.get("/v1/models"), MODEL)


def recipes(session: Session) -> None:
    """List the serving recipes: engines, and what they serve."""
    with session.tenant() as api:
        session.show_items(api.get("/v1/recipes"), RECIPE)


def show(session: Session, name: Name, *, as_operator: AsOperator = False) -> None:
    """Show a model of yours, or of the house."""
    with session.tenant(as_operator=as_operator) as api:
        session.show(api.get(_path(name)), MODEL)


def upload(
    session: Session,
    name: OwnName,
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A .gguf file, or a folder.")],
    *,
    licence: Licence,
    licence_url: LicenceUrl = "",
    recipe: Recipe = None,
    context: Context = None,
    chat_template: Template = None,
    as_operator: AsOperator = False,
) -> None:
    """Upload a model's files, each part with its checksum. The same again goes on where it was."""
    files = _files(source)
    told: Document = {
        "kind": "upload",
        "files": [{"path": path, "bytes": at.stat().st_size} for path, at in files],
    }
    asked = _asked(name, licence, licence_url, recipe, context, chat_template)
    with session.tenant(as_operator=as_operator) as api:
        document = _begun(api, name, told["files"]) or api.post(
            "/v1/models", {**asked, "source": told}
        )
        _send(session, api, document["name"], dict(files))
        api.post(f"{_path(document['name'])}/complete", {})
        session.show(_taken_in(session, api, document["name"]), MODEL)


def import_(
    session: Session,
    name: OwnName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="Beneath your folder for imports; or s3://BUCKET/PREFIX."
        ),
    ],
    *,
    licence: Licence,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="Of the bucket's store.")
    ] = None,
    region: Annotated[
        str, typer.Option("--region", metavar="NAME", help="The same.")
    ] = "us-east-1",
    licence_url: LicenceUrl = "",
    recipe: Recipe = None,
    context: Context = None,
    chat_template: Template = None,
    as_operator: AsOperator = False,
) -> None:
    """Import a model from your folder for imports, or from a bucket.

    A bucket's key is read from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
    """
    asked = _asked(name, licence, licence_url, recipe, context, chat_template)
    asked["source"] = _origin(source, endpoint, region)
    with session.tenant(as_operator=as_operator) as api:
        document = api.post("/v1/models", asked)
        session.show(_taken_in(session, api, document["name"]), MODEL)


def deploy(
    session: Session,
    name: Name,
    *,
    least: Annotated[int, typer.Option("--min", min=0, metavar="N", help="Replicas kept up.")] = 0,
    most: Annotated[int, typer.Option("--max", min=1, metavar="N", help="Replicas at most.")] = 1,
    tier: Annotated[
        Literal["interruptible", "on_demand"], typer.Option("--tier", help="Of their leases.")
    ] = "interruptible",
    outstanding_tokens: Annotated[
        int, typer.Option("--tokens", min=1, metavar="N", help="Outstanding, for each replica.")
    ] = 4096,
    first_token_ms: Annotated[
        int, typer.Option("--first-token", min=1, metavar="MS", help="That nine of ten may wait.")
    ] = 2000,
    idle_seconds: Annotated[
        int, typer.Option("--idle", min=1, metavar="S", help="Before it goes to --min.")
    ] = 300,
    as_operator: AsOperator = False,
) -> None:
    """Serve a model, or change how its replicas are scaled."""
    body: Document = {
        "min_replicas": least, "max_replicas": most, "tier": tier,
        "outstanding_tokens": outstanding_tokens, "first_token_ms": first_token_ms,
        "idle_seconds": idle_seconds,
    }  # fmt: skip
    with session.tenant(as_operator=as_operator) as api:
        session.show(api.put(f"{_path(name)}/deployment", body), MODEL)


def undeploy(session: Session, name: Name, *, as_operator: AsOperator = False) -> None:
    """Serve a model no longer; requests under way are finished."""
    with session.tenant(as_operator=as_operator) as api:
        session.show(api.delete(f"{_path(name)}/deployment"), MODEL)


def delete(
    session: Session,
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_operator: AsOperator = False,
) -> None:
    """Delete a model for good: the key of its weights is destroyed."""
    if not yes and not typer.confirm(f"Delete {name} for good?", err=True):
        raise Failure("nothing was deleted")
    with session.tenant(as_operator=as_operator) as api:
        session.show(api.delete(_path(name)), (Column("deleted", "name"),))


def _path(name: str) -> str:
    from sublet.cli.client import part  # noqa: PLC0415 -- slow to load

    return f"/v1/models/{part(name)}"


def _origin(source: str, endpoint: str | None, region: str) -> Document:
    if not source.startswith("s3://"):
        return {"kind": "path", "path": source}
    if endpoint is None:
        raise Failure("name the address of the bucket's store: --endpoint https://…")
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    told: Document = {
        "kind": "s3", "endpoint": endpoint, "bucket": bucket, "prefix": prefix, "region": region,
    }  # fmt: skip
    for name in ("access_key_id", "secret_access_key", "session_token"):
        if value := os.environ.get(f"AWS_{name.upper()}"):
            told[name] = value
    return told


def _asked(
    name: str,
    licence: str,
    licence_url: str,
    recipe: str | None,
    context: int | None,
    chat_template: Path | None,
) -> Document:
    asked: Document = {"name": name, "licence": licence, "licence_url": licence_url}
    if recipe is not None:
        asked["recipe"] = recipe
    if context is not None:
        asked["context_tokens"] = context
    if chat_template is not None:
        try:
            asked["chat_template"] = chat_template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Failure(f"cannot read {chat_template}: {error}") from None
    return asked


def _files(source: Path) -> list[tuple[str, Path]]:
    """Return (path within the model, where it is) of each file."""
    if source.is_file():
        return [(source.name, source)]
    if not source.is_dir():
        raise Failure(f"there is no {source}")
    found = [
        (at.relative_to(source).as_posix(), at)
        for at in sorted(source.rglob("*"))
        if at.is_file() and not _ASIDE & set(at.relative_to(source).parts)
    ]
    if not found:
        raise Failure(f"{source} has no files")
    return found


def _begun(api: "Client", name: str, files: Sequence[Document]) -> Document | None:
    """Return the same upload, if it was begun before and is not done."""
    for document in api.items("/v1/models"):
        if document["name"].rpartition("/")[2] == name and document["state"] == "receiving":
            found = api.get(_path(document["name"]))
            there = [{"path": one["path"], "bytes": one["bytes"]} for one in found["files"]]
            if "upload" in found and there == list(files):
                return found
    return None


def _send(session: Session, api: "Client", name: str, files: dict[str, Path]) -> None:
    with bar(wanted=not session.json) as tell:
        while (state := api.get(_path(name))["upload"])["missing"]:
            left = state["missing"]
            for piece in state["next"]:
                at, number = files[piece["file"]], piece["part"]
                with at.open("rb") as file:
                    file.seek(number * state["part_bytes"])
                    body = file.read(state["part_bytes"])
                _send_part(api, name, piece["file"], number, body)
                left -= 1
                tell(f"uploading {piece['file']}", 1 - left / state["parts"])


def _send_part(api: "Client", name: str, file: str, part: int, body: bytes) -> None:
    params = {"file": file, "part": part, "sha256": hashlib.sha256(body).hexdigest()}
    for tries in range(1, _TRIES + 1):
        try:
            api.put_bytes(f"{_path(name)}/parts", body, **params)
        except Failure:
            if tries == _TRIES:
                raise
        else:
            return


def _taken_in(session: Session, api: "Client", name: str) -> Document:
    """Wait until it is ready or refused.

    Raises:
        Failure: it is refused.
    """
    with bar(wanted=not session.json) as tell:
        while (document := api.get(_path(name)))["state"] in {"receiving", "checking"}:
            tell(text(document["detail"]) or "taking it in", 0.0)
            time.sleep(_LOOK_SECONDS)
    if document["state"] != "ready":
        raise Failure(f"{name} is {document['state']}: {text(document['detail'])}")
    return document
