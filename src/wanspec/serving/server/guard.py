"""The outer shell of the server: API keys, sizes, and the access log.

Plain ASGI: FastAPI's own middleware would read answers before passing them on, and would hide hang-ups. No prompt, text or key reaches the
log: paths are logged as their routes, errors without their messages.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wanspec.serving.server.errors import ApiError, error_response
from wanspec.serving.server.keys import ANONYMOUS, ApiKeys
from wanspec.serving.server.limits import ServerLimits
from wanspec.serving.server.log import bare_trace
from wanspec.serving.server.metrics import REFUSALS, Metrics
from wanspec.serving.server.status_page import PAGE_PATHS
from wanspec.transport.security import Address

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that a load balancer asks without a key."""
STATUS_PATH = "/status.json"
QUIET_PATHS = OPEN_PATHS | {STATUS_PATH}
"""Paths that programs poll; success there is logged at DEBUG."""
LINE_BYTES = len(": \r\n")
"""Bytes of a header besides its name and value."""
JSON_TYPE = b"application/json"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Visit:
    """Facts about a request besides its body."""

    request_id: str
    """The client's X-Request-ID, or a random one."""
    key_name: str = ANONYMOUS
    """Name of the API key."""
    status: int = 0
    """HTTP status of the answer; 0 before there is one."""
    late_status: int = 0
    """HTTP status of a failure that came after the head of a stream; 0: none."""
    notes: dict[str, object] = field(default_factory=dict)
    """Further fields for the log."""

    @staticmethod
    def of(scope: Scope) -> Visit:
        """The visit that `AccessLog` made for this request."""
        visit = scope["state"]["visit"]
        assert isinstance(visit, Visit)
        return visit


class AccessLog:
    """Gives each request an id, logs it when it is over, and catches bugs inside."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(request_id=_request_id(scope))
        scope.setdefault("state", {})["visit"] = visit
        loop = asyncio.get_running_loop()
        began_at = loop.time()

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = visit.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:  # noqa: BLE001  # a bug of ours: it ends this request, and no other
            _log.error("bug", extra={"fields": {"request_id": visit.request_id, "trace": bare_trace(error)}})
        finally:
            if (status := visit.late_status or visit.status) in REFUSALS:
                self._metrics.refused(status)
            level = logging.DEBUG if _path(scope) in QUIET_PATHS and visit.status == HTTPStatus.OK else logging.INFO
            _log.log(level, "request", extra={"fields": _summary(scope, visit, loop.time() - began_at)})


class Guard:
    """Refuses requests without a key or beyond the limits."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys | None, limits: ServerLimits, is_private: bool) -> None:
        """`is_private`: without keys, requests are served to localhost only, by no other name."""
        self._app, self._keys, self._limits, self._is_private = app, keys, limits, is_private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        asked = _routed(scope)
        try:
            await self._app(asked, self._bounded(receive), send)
        finally:
            scope["route"] = asked.get("route")

    def _check(self, scope: Scope) -> None:
        """Raise ApiError for a request that need not be read."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        head_bytes = len(scope["raw_path"]) + sum(len(name) + len(value) + LINE_BYTES for name, value in scope["headers"])
        if head_bytes > self._limits.max_header_bytes:
            raise ApiError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request's head has more than {self._limits.max_header_bytes} bytes",
                ends_connection=True,
            )
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # Proxies disagree on which one counts, so one's body would be the other's next request (request smuggling).
            raise ApiError(HTTPStatus.BAD_REQUEST, "give a Content-Length or a Transfer-Encoding, not both", ends_connection=True)
        if self._is_private:
            _check_host(headers.get(b"host", b""))
        if self._keys is not None and _path(scope) not in OPEN_PATHS | PAGE_PATHS:
            name = self._keys.name_of(headers.get(b"authorization", b""))
            if name is None:
                raise ApiError(
                    HTTPStatus.UNAUTHORIZED,
                    "give a valid API key: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    ends_connection=True,
                )
            Visit.of(scope).key_name = name
        if scope["method"] == "POST" and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != JSON_TYPE:
            # A web page may send any other type to this machine without its user's knowledge (CSRF).
            raise ApiError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json", ends_connection=True)
        if int(headers.get(b"content-length", b"0") or 0) > self._limits.max_body_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, for a body of limited size in limited time."""
        size_bytes, is_complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._limits.body_timeout_s

        async def bounded() -> Message:
            nonlocal size_bytes, is_complete
            if is_complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {self._limits.body_timeout_s:g} s", ends_connection=True
                ) from None
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            is_complete = not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {self._limits.max_body_bytes} bytes", ends_connection=True
        )


def _routed(scope: Scope) -> Scope:
    """The request as the routes know it. A HEAD is a GET whose body uvicorn drops."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return {**scope, "path": _path(scope), "method": method}


def _path(scope: Scope) -> str:
    """The path without a slash at its end."""
    path: str = scope["path"]
    return path.rstrip("/") or "/"


def _check_host(host: bytes) -> None:
    """Raise ApiError for a host name other than localhost: a web page may have bound its name to this address (DNS rebinding)."""
    name = host.decode("latin-1").rpartition(":")[0] if re.search(rb":\d+$", host) else host.decode("latin-1")
    if not Address(host=name.strip("[]").lower(), port=0).is_loopback:
        raise ApiError(
            HTTPStatus.MISDIRECTED_REQUEST,
            "without API keys only requests to localhost are served; set keys, or start with --allow-no-keys",
            ends_connection=True,
        )


def _request_id(scope: Scope) -> str:
    """The client's own id, where it is fit for a log; else a new one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


def _summary(scope: Scope, visit: Visit, duration_s: float) -> dict[str, object]:
    route = scope.get("route")
    return {
        "request_id": visit.request_id,
        "key": visit.key_name,
        "client": (scope.get("client") or ("", 0))[0],
        "method": scope["method"] if len(scope["method"]) <= len("OPTIONS") else "",
        "route": getattr(route, "path", ""),
        "status": visit.status,
        "duration_ms": round(1e3 * duration_s, 1),
        **visit.notes,
    }
