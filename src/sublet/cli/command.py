"""How a command is declared: its examples, and the options that every command shares."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec

import typer

from sublet.cli.failure import say
from sublet.cli.instance import Instance, Options, Role, find
from sublet.cli.output import Column, Document, print_fields, print_json, print_table

if TYPE_CHECKING:
    from sublet.cli.client import Client

P = ParamSpec("P")

Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR",
        help="A local instance's folder. [env: SUBLET_DATA; default: ~/.local/share/sublet]",
    ),
]  # fmt: skip
Url = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL",
        help="Another instance's API; needs a key. [env: SUBLET_URL]",
    ),
]  # fmt: skip
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY",
        help="API key; safer in the variable. [env: SUBLET_KEY; default: the folder's]",
    ),
]  # fmt: skip
Ca = Annotated[
    str | None,
    typer.Option(
        "--ca", metavar="FILE", help="CA that https is checked with. [env: SUBLET_CA]"
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_SHARED: Final[dict[str, Any]] = {"data": Data, "url": Url, "key": Key, "ca": Ca, "json": Json}
_CLIENT_OPTIONS: Final = tuple(_SHARED)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command: which instance it talks to, and how it prints."""

    options: Options

    @property
    def json(self) -> bool:
        return self.options.json

    def operator(self) -> "Client":
        return self._client(find(self._resolved(), Role.OPERATOR))

    def tenant(self, *, as_operator: bool = False) -> "Client":
        role = Role.OPERATOR if as_operator else Role.TENANT
        return self._client(find(self._resolved(), role, own_key=as_operator))

    def show(
        self,
        document: Document,
        columns: Sequence[Column],
        *,
        more: Callable[[], None] = lambda: None,
    ) -> None:
        """Print one thing: its fields, and `more` about it for people."""
        if self.json:
            print_json(document)
        else:
            print_fields(document, columns)
            more()

    def show_items(self, document: Document, columns: Sequence[Column]) -> None:
        from sublet.cli.client import items_of  # noqa: PLC0415 -- slow to load

        items = items_of(document)
        if self.json:
            print_json(document)
        else:
            print_table(items, columns)

    def say(self, text: str) -> None:
        """Tell a person something beside the result; programs are not told."""
        if not self.json:
            say(text)

    def warn_if_unsafe(self, document: Document | Instance) -> None:
        unsafe = (
            document.unsafe_no_sandbox
            if isinstance(document, Instance)
            else document.get("unsafe_no_sandbox")
        )
        if unsafe is True:
            self.say("warning: this instance runs tenants' code without a sandbox")

    def _resolved(self) -> Options:
        return self.options.or_environment(os.environ)

    def _client(self, instance: Instance) -> "Client":
        from sublet.cli.client import Client  # noqa: PLC0415 -- slow to load

        self.warn_if_unsafe(instance)
        return Client(instance)


def command(
    group: typer.Typer,
    name: str,
    *,
    examples: Sequence[str],
    shared: Sequence[str] = _CLIENT_OPTIONS,
    runs_a_command: bool = False,
    alone: bool = False,
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Make a function the command `name` of `group`.

    Its first parameter is the `Session`; the others are the command's own, and the `shared`
    options are added to them. Its docstring and `examples` are the help. With
    `runs_a_command`, everything from the first word on is left alone. With `alone`, it is what
    `group` does when it is called without one of its commands; the group's name stays its own.
    """

    def register(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        def run(ctx: typer.Context, **given: Any) -> None:
            if alone and ctx.invoked_subcommand is not None:
                return
            options = Options(**{option: given.pop(option) for option in shared})
            outer = ctx.find_root().obj
            if isinstance(outer, Options):
                options = options.over(outer)
            function(Session(options), **given)  # type: ignore[call-arg]

        own = list(inspect.signature(function).parameters.values())[1:]
        _sign(run, [_CONTEXT, *own, *_options(shared)])
        settings = {"allow_interspersed_args": not runs_a_command}
        about = _help(function, examples)
        if alone:
            group.callback(invoke_without_command=True, help=about)(run)
        else:
            group.command(name, help=about, context_settings=settings)(run)
        return function

    return register


def new_group(about: str, *, examples: Sequence[str]) -> typer.Typer:
    """Return a group of commands that prints its help when called alone."""
    group = typer.Typer(rich_markup_mode=None, add_completion=False)

    def alone(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            print(ctx.get_help())

    group.callback(invoke_without_command=True, help=_text(about, examples))(alone)
    return group


def new_root(about: str, *, examples: Sequence[str], version: str) -> typer.Typer:
    """Return the group above all, which takes the shared options too."""
    root = typer.Typer(
        rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
    )

    def alone(ctx: typer.Context, version_only: bool, **given: Any) -> None:
        ctx.obj = Options(**given)
        if version_only:
            print(version)
            raise typer.Exit
        if ctx.invoked_subcommand is None:
            print(ctx.get_help())

    flag = Annotated[bool, typer.Option("--version", help="Print the version.")]
    asked = Parameter("version_only", Parameter.KEYWORD_ONLY, annotation=flag, default=False)
    _sign(alone, [_CONTEXT, asked, *_options(_CLIENT_OPTIONS)])
    root.callback(invoke_without_command=True, help=_text(about, examples))(alone)
    return root


_CONTEXT: Final = Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)


def _options(names: Sequence[str]) -> list[Parameter]:
    return [
        Parameter(
            name, Parameter.KEYWORD_ONLY, annotation=_SHARED[name],
            default=False if name == "json" else None,
        )
        for name in names
    ]  # fmt: skip


def _sign(function: Callable[..., None], parameters: Sequence[Parameter]) -> None:
    """Give `function` the signature that Typer reads its options from."""
    parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in parameters]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


def _help(function: Callable[..., None], examples: Sequence[str]) -> str:
    about = inspect.getdoc(function)
    assert about, function
    return _text(about, examples)


def _text(about: str, examples: Sequence[str]) -> str:
    # \b keeps the lines of its paragraph as they are.
    return "\n".join([about, "", "\b", "Examples:", *(f"  {example}" for example in examples)])
