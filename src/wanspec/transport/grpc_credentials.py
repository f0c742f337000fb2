"""TLS credentials of both sides for gRPC, from files that are read again when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc

from wanspec.errors import ConfigError
from wanspec.transport.security import (
    MutualTls,
    Plaintext,
    TokenTlsController,
    TokenTlsWorker,
    WorkerSecurity,
    tls_context,
    worker_tls_context,
)
from wanspec.transport.watched_files import WatchedFiles

_log = logging.getLogger(__name__)


class ListenerCredentials:
    """A controller's credentials. A handshake gets the files as last read; open connections keep what they began with."""

    def __init__(self, security: MutualTls | TokenTlsController, *, began: Callable[[], object]) -> None:
        """`began` is called before each handshake, from gRPC's threads. Raises ConfigError when a file cannot be used."""
        self._security, self._began = security, began
        self._ca_file = security.ca_file if isinstance(security, MutualTls) else None
        self._newest = self._in_use = self._configuration()
        self.files = WatchedFiles(
            "certificates of the draft link", (self._ca_file, security.certificate_file, security.key_file), self._read
        )
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._newest,
            self._change,  # type: ignore[arg-type]  # it may answer None, whatever the types say
            require_client_authentication=self._ca_file is not None,
        )

    def _read(self) -> None:
        self._newest = self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        security = self._security
        tls_context(ca_file=self._ca_file, certificate_file=security.certificate_file, key_file=security.key_file)
        pair = security.key_file.read_bytes(), security.certificate_file.read_bytes()
        authority = None if self._ca_file is None else self._ca_file.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def _change(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake. Returns the configuration if it is new since the last one."""
        self._began()
        newest = self._newest  # once: the files may be read in another thread meanwhile
        if newest is self._in_use:
            return None
        self._in_use = newest
        return newest


class WorkerCredentials:
    """A worker's credentials. Its files are read whenever it dials; where they have become unusable, the last usable ones are shown."""

    def __init__(self, security: WorkerSecurity) -> None:
        self._security = security
        self._last_read: grpc.ChannelCredentials | None = None
        self._has_warned = False

    def current(self) -> grpc.ChannelCredentials | None:
        """None for plaintext. Raises ConfigError when a file cannot be used, and none could before."""
        if isinstance(self._security, Plaintext):
            return None
        try:
            self._last_read, self._has_warned = _read(self._security), False
        except (ConfigError, OSError) as error:  # OSError: a file that goes while it is read
            if self._last_read is None:
                raise
            if not self._has_warned:
                _log.warning("the new certificates cannot be used, the old ones stay in force: %s", error)
            self._has_warned = True
        return self._last_read


def _read(security: MutualTls | TokenTlsWorker) -> grpc.ChannelCredentials:
    worker_tls_context(security)
    if isinstance(security, MutualTls):
        return grpc.ssl_channel_credentials(
            security.ca_file.read_bytes(), security.key_file.read_bytes(), security.certificate_file.read_bytes()
        )
    return grpc.ssl_channel_credentials(security.ca_file.read_bytes() if security.ca_file else None)
