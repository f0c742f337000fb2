"""Why a connection did not come about for good."""

from wanspec.errors import TransportError


class WorkerRefusedError(TransportError):
    """The controller will not have this worker as it is: wrong credentials, or a Hello that does not fit.

    Dialling again changes nothing, a person has to; any other TransportError is worth another try.
    """
