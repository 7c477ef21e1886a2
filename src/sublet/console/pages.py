"""What a browser shows at the instance's address: what this is, and where to go."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sublet</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
 body {{ max-width: 42rem; margin: 4rem auto; padding: 0 1rem; }}
 .warning {{ border-left: .3rem solid #d33; padding: .5rem 1rem; }}
 code {{ background: #8882; padding: .1rem .3rem; border-radius: .2rem; }}
</style></head><body>
<h1>Sublet</h1>
{warning}
<p><a href="/console/">The console</a> shows the fleet, leases, models and money.</p>
<p>For programs, this address is an API. <a href="/docs">Its reference</a> is served here, and
<a href="/openapi.json">its OpenAPI document</a>.</p>
<p>Models answer at <code>{gateway}/v1</code> (OpenAI-compatible).
On this machine, <code>sublet --help</code> lists what you can do.</p>
</body></html>
"""
_REFERENCE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Sublet's API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
 body {{ max-width: 56rem; margin: 3rem auto; padding: 0 1rem; }}
 code, pre {{ background: #8882; padding: .1rem .3rem; border-radius: .2rem; }}
 pre {{ padding: .6rem; overflow: auto; font-size: .85rem; }}
 summary {{ cursor: pointer; padding: .2rem 0; }}
</style></head><body>
<h1>Sublet's API</h1>
{warning}
<p>Send your key as <code>Authorization: Bearer sk-sublet-…</code>. The same as a document for
programs: <a href="/openapi.json">openapi.json</a>.</p>
{operations}
</body></html>
"""
_WARNING: Final = (
    '<p class="warning"><strong>Unsafe:</strong> this instance runs tenants\' commands without'
    " a sandbox (<code>--unsafe-no-sandbox</code>). They can read its data and keys.</p>"
)


@router.get("/docs", response_class=HTMLResponse)
def show_reference(request: Request) -> str:
    """The OpenAPI document as a page that needs nothing from elsewhere."""
    document = request.app.openapi()
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append(
                _operation(method, path, operation)
            )
    sections = [f"<h2>{escape(tag)}</h2>{''.join(items)}" for tag, items in sorted(by_tag.items())]
    schemas = escape(json.dumps(document["components"]["schemas"], indent=1, ensure_ascii=False))
    sections.append(f"<h2>schemas</h2><pre>{schemas}</pre>")
    unsafe = request.app.state.services.config.unsafe_no_sandbox
    return _REFERENCE.format(warning=_WARNING if unsafe else "", operations="".join(sections))


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    details = {name: operation[name] for name in ("parameters", "requestBody") if name in operation}
    text = escape(str(operation.get("description", operation.get("summary", ""))))
    return (
        f"<details><summary><code>{escape(method.upper())} {escape(path)}</code>"
        f" {escape(str(operation.get('summary', '')))}</summary><p>{text}</p>"
        + (f"<pre>{escape(json.dumps(details, indent=1))}</pre>" if details else "")
        + "</details>"
    )


@router.get("/", response_class=HTMLResponse)
def show_front(request: Request) -> str:
    config = request.app.state.services.config
    return _PAGE.format(
        warning=_WARNING if config.unsafe_no_sandbox else "", gateway=escape(config.gateway_url)
    )
