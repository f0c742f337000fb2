"""The application: routes, error handlers and the shell around them."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from wanspec import __version__
from wanspec.serving.server.errors import ApiError, error_response, on_http_exception, on_invalid_request
from wanspec.serving.server.guard import AccessLog, Guard
from wanspec.serving.server.keys import ApiKeys
from wanspec.serving.server.routes import make_router
from wanspec.serving.server.service import Service
from wanspec.serving.server.status import Access
from wanspec.serving.server.status_page import make_page_router


def create_app(service: Service, *, keys: ApiKeys | None, is_private: bool, access: Access | None = None) -> ASGIApp:
    """The whole server as an ASGI application. `is_private`: see `Guard`. `access`: to the status page's data."""
    app = FastAPI(title="WANSpec", version=__version__, docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.router.redirect_slashes = False  # it would redirect to this server's scheme and host, which behind a proxy are not the client's
    app.include_router(make_router(service, access or Access()))
    app.include_router(make_page_router())
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(Exception, _on_bug)
    return AccessLog(Guard(app, keys=keys, limits=service.limits, is_private=is_private), service.metrics)


async def _on_bug(_: Request, __: Exception) -> Response:
    """FastAPI raises the error again after this, and `AccessLog` logs it."""
    return error_response(
        ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "an internal error; the log has the request's id", code="internal_error")
    )
