"""The exception family. User input raises with the value and the fix; a peer's fault names the worker."""


class WanspecError(Exception):
    """Anything that WANSpec raises on purpose."""


class ConfigError(WanspecError):
    """A setting, flag, file or request that cannot be used; the message names the value and the fix."""


class LocalProtocolError(WanspecError):
    """This side used a machine wrongly: a bug in a driver, never a peer's fault."""


class RemoteProtocolError(WanspecError):
    """A peer sent what the protocol does not allow; it is dropped, decoding goes on."""

    def __init__(self, reason: str, *, worker: str = "") -> None:
        super().__init__(f"worker {worker}: {reason}" if worker else reason)
        self.reason = reason
        self.worker = worker


class BackendError(WanspecError):
    """A model engine could not do what it was asked."""


class TransportError(WanspecError):
    """A connection could not be made, was refused, or is gone; the message says why."""
