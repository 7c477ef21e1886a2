"""`sublet export …`: what was charged, in formats of others."""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from sublet.cli.command import Session, command, new_group
from sublet.cli.files import whole
from sublet.cli.output import print_json
from sublet.cli.tenants import tenant_id

_DATASETS: Final = {
    "1.2": ("cost-and-usage",),
    "1.4": ("cost-and-usage", "contract-commitment", "billing-period", "invoice-detail"),
}


def add_to(root: typer.Typer) -> None:
    group = new_group(
        "Exports: what was charged, in formats that other programs read.",
        examples=("sublet export focus --period 2026-10 --output bills",),
    )
    root.add_typer(group, name="export")
    command(
        group, "focus",
        examples=(
            "sublet export focus --period 2026-10 --output bills",
            "sublet export focus --version 1.2 --period 2026-10 --format csv --output bills",
            "sublet export focus --period 2026-10 --as-operator --tenant acme --output acme",
        ),
    )(focus)  # fmt: skip


def focus(
    session: Session,
    *,
    period: Annotated[str, typer.Option(metavar="MONTH", help="Such as 2026-10.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where a file a dataset goes.")],
    version: Annotated[Literal["1.2", "1.4"], typer.Option(help="Of FOCUS.")] = "1.4",
    format: Annotated[  # noqa: A002 -- the option's name
        Literal["parquet", "csv"], typer.Option(help="Of the files.")
    ] = "parquet",
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Whose, with --as-operator: name or id.")
    ] = None,
    as_operator: Annotated[
        bool, typer.Option("--as-operator", help="With the operator's key: everybody's bills.")
    ] = False,
) -> None:
    """Write a month's bills as FOCUS: costs and usage; in 1.4 also commitments, periods and lines.

    Each file is written whole or not at all. The costs of each invoice add up to its total.
    """
    output.mkdir(parents=True, exist_ok=True)
    written = []
    with session.tenant(as_operator=as_operator) as api:
        params: dict[str, Any] = {"version": version, "period": period, "format": format}
        if tenant is not None:
            params["tenant_id"] = tenant_id(api, tenant)
        for dataset in _DATASETS[version]:
            path = output / f"{dataset}.{format}"
            size_bytes = 0
            stream = api.stream("GET", "/v1/exports/focus", params=params | {"dataset": dataset})
            with whole(path) as file, stream as response:
                for piece in response.iter_bytes():
                    size_bytes += file.write(piece)
            written.append({"output": str(path), "dataset": dataset, "bytes": size_bytes})
    if session.json:
        print_json({"version": version, "period": period, "files": written})
        return
    for one in written:
        print(f"{one['output']}  {one['bytes']} bytes")
