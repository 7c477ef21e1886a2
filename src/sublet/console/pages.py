"""What a browser shows at the instance's address: what this is, and where to go."""

from html import escape
from typing import Final

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
<p>This address is an API. <a href="/docs">Its reference</a> is served here, and
<a href="/openapi.json">its OpenAPI document</a>.</p>
<p>Models answer at <code>{gateway}/v1</code> (OpenAI-compatible).
On this machine, <code>sublet --help</code> lists what you can do.</p>
</body></html>
"""
_WARNING: Final = (
    '<p class="warning"><strong>Unsafe:</strong> this instance runs tenants\' commands without'
    " a sandbox (<code>--unsafe-no-sandbox</code>). They can read its data and keys.</p>"
)


@router.get("/", response_class=HTMLResponse)
def show_front(request: Request) -> str:
    config = request.app.state.services.config
    return _PAGE.format(
        warning=_WARNING if config.unsafe_no_sandbox else "", gateway=escape(config.gateway_url)
    )
