"""Why a connection did not come about, or did not last."""

from wanspec.errors import TransportError


class WorkerRefusedError(TransportError):
    """The controller will not have this worker as it is: wrong credentials, or a Hello that does not fit.

    Dialling again changes nothing, a person has to; any other TransportError is worth another try.
    """


class QuarantinedError(TransportError):
    """The worker is not let in for a while, because of what it did (controller's side)."""


class SlowPeerError(TransportError):
    """The peer was dropped because it does not read what it is sent."""
