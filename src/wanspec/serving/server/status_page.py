"""The static files of the status page, the same for everybody, served without a key.

They ask `/status.json` for the data, with the key that the reader types in. The data comes from workers and users, so the page makes text
nodes of it only, and the headers forbid the browser to run anything else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/status/page.css": ("page.css", "text/css"),
    "/status/page.js": ("page.js", "text/javascript"),
    "/status/elements.js": ("elements.js", "text/javascript"),
    "/status/charts.js": ("charts.js", "text/javascript"),
    "/status/tree.js": ("tree.js", "text/javascript"),
}
"""File and media type by path."""
PAGE_PATHS = frozenset(PAGE_FILES)
CONTENT_RULES = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src data:",  # an empty icon
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""Only our own files run; no text can become markup (trusted types), and nothing can be sent anywhere else."""
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
PAGE_HEADERS = {
    **_ALWAYS,
    "Content-Security-Policy": "; ".join(CONTENT_RULES),
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}
DATA_HEADERS = {**_ALWAYS, "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cache-Control": "no-store"}


def make_page_router() -> APIRouter:
    """A route for each file."""
    router = APIRouter()
    for path, (name, kind) in PAGE_FILES.items():
        router.add_api_route(path, _answer(name, kind), include_in_schema=False)
    return router


def _answer(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = files("wanspec.serving.server").joinpath("page", name).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=PAGE_HEADERS)

    return answer
