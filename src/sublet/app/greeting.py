"""What `sublet up` prints once it is ready."""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sublet.app.bootstrap import DEMO_CREDIT, DEMO_MODEL
from sublet.config import Config, default_data

_QUESTION: Final = [{"role": "user", "content": "What is the capital of France?"}]


def greeting(
    config: Config, ready: Mapping[str, Any], *, invitation: str | None, note: str | None
) -> str:
    """Return the lines to print: addresses, keys, and three commands to copy.

    Args:
        config: the settings in force.
        ready: what `ready.json` says.
        invitation: the link to the console's first account; None: there is one already.
        note: what is missing, if anything is.
    """
    key, http_url = ready["tenant_key"], ready["gateway_http_url"]
    data = "" if config.data == default_data() else f" --data {shlex.quote(str(config.data))}"
    warnings = []
    if config.unsafe_no_sandbox:
        warnings.append(
            "UNSAFE: tenants' commands run without a sandbox; they can read this data and keys."
        )
    if note is not None:
        warnings.append(f"Note: {note}")
    lines = [
        "",
        "Sublet is ready.",
        *(f"  {warning}" for warning in warnings),
        "",
        *_console(ready["console_url"], invitation),
        f"  API               {ready['api_url']}",
        f"  Gateway           {ready['gateway_url']}  (https; its CA: {ready['ca_file']})",
        f"                    {ready['gateway_http_url']}  (http, this machine only)",
        f"  Operator's key    {ready['operator_key']}",
        f"  Demo tenant       {ready['tenant']}, which started with {DEMO_CREDIT}",
        f"  Its key           {key}",
        "",
        "Try:",
        "",
        *(_model_commands(http_url, key) if config.model else ()),
        f"  {_cli()} lease create{data} --follow -- sh -c 'echo hello from a leased slot; nproc'",
        "",
        "Ctrl-C stops everything; the next start goes on with the same data.",
    ]
    return "\n".join(lines)


def _console(url: str, invitation: str | None) -> list[str]:
    if invitation is None:
        return [f"  Console           {url}"]
    return [f"  Console           open this once, to make the first account: {invitation}"]


def _model_commands(http_url: str, key: str) -> list[str]:
    request = json.dumps({"model": DEMO_MODEL, "messages": _QUESTION})
    program = (
        "from openai import OpenAI;"
        f' c = OpenAI(base_url="{http_url}/v1", api_key="{key}");'
        f' print(c.chat.completions.create(model="{DEMO_MODEL}",'
        f" messages={json.dumps(_QUESTION)}).choices[0].message.content)"
    )
    return [
        f"  curl {http_url}/v1/chat/completions \\",
        f"    -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\",
        f"    -d '{request}'",
        "",
        f"  {shlex.quote(sys.executable)} -c '{program}'",
        "",
    ]


def _cli() -> str:
    """Return how this very `sublet` is called from the reader's shell."""
    ours = Path(sys.executable).parent / "sublet"
    on_path = shutil.which("sublet")
    return "sublet" if on_path is not None and Path(on_path) == ours else shlex.quote(str(ours))
