"""Errors for clients, always in OpenAI's envelope."""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_MESSAGE_CHARACTERS = 1000
"""Longest message, as it may quote a client."""
_KINDS = {HTTPStatus.UNAUTHORIZED: "authentication_error", HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}


class ApiError(HTTPException):
    """A request that fails; `str` of it is for the client."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        ends_connection: bool = False,
    ) -> None:
        """`param`: the field at fault. `ends_connection`: the rest of the request will not be read."""
        headers = {}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        if ends_connection:
            headers["Connection"] = "close"
        if status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def __str__(self) -> str:
        return self.detail

    @property
    def body(self) -> bytes:
        """The envelope."""
        return envelope(self.status_code, self.detail, param=self.param, code=self.code)


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """An error in the field `param`."""
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code=code)


def envelope(status: int, message: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """{"error": {message, type, param, code}}, as JSON."""
    kind = _KINDS.get(HTTPStatus(status), "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error")
    error = {"message": _shown(message), "type": kind, "param": None if param is None else _shown(param), "code": code}
    return msgspec.json.encode({"error": error})


def _shown(text: str) -> str:
    """A client's words, cut and encodable."""
    return text[:MAX_MESSAGE_CHARACTERS].encode(errors="replace").decode()


def error_response(error: HTTPException) -> Response:
    """The HTTP response for `error`."""
    body = error.body if isinstance(error, ApiError) else envelope(error.status_code, f"{error.detail}; see docs/serving.md")
    return Response(body, error.status_code, error.headers, media_type="application/json")


async def on_http_exception(_: Request, error: Exception) -> Response:
    """FastAPI's handler for raised responses: no such path, no such method, and ApiError."""
    assert isinstance(error, HTTPException)
    return error_response(error)


async def on_invalid_request(_: Request, error: Exception) -> Response:
    """FastAPI's handler for an invalid body: names the first fault, without the value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(bad_request("the body is not valid JSON"))
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    return error_response(bad_request(f"{param or 'the body'}: {first['msg']}", param=param))
