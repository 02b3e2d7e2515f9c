"""The errors that a caller may handle, and their gRPC statuses, there and back.

HeadwaterError
├── InvalidInputError      the caller must change the request          INVALID_ARGUMENT
├── NotFoundError          there is no such thing                      NOT_FOUND
├── PermissionDeniedError  the caller may not                          PERMISSION_DENIED
├── VersionConflictError   somebody else was faster: read again        ABORTED
├── StaleContextError      a demanded position was not reached         FAILED_PRECONDITION
├── OverloadedError        a bound was reached: slow down              RESOURCE_EXHAUSTED
├── UnavailableError       something that is needed is not there       UNAVAILABLE
└── DeadlineError          it took longer than the caller would wait   DEADLINE_EXCEEDED

Every message says what happened, where, and what to do. Anything that is not a HeadwaterError is a bug: INTERNAL.
"""

from typing import ClassVar

import grpc


class HeadwaterError(Exception):
    """Base of all errors that a caller may handle."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class InvalidInputError(HeadwaterError):
    """The request or the configuration is wrong and must be changed."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(HeadwaterError):
    """There is no such thing."""

    status = grpc.StatusCode.NOT_FOUND


class PermissionDeniedError(HeadwaterError):
    """The caller may not do or see this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class VersionConflictError(HeadwaterError):
    """Somebody else changed it first, or a partition has moved on; read again and retry."""

    status = grpc.StatusCode.ABORTED


class StaleContextError(HeadwaterError):
    """A position that the caller demanded was not reached in time."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class OverloadedError(HeadwaterError):
    """A bound was reached; the caller should slow down."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(HeadwaterError):
    """Something that is needed is not there at the moment."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlineError(HeadwaterError):
    """It took longer than the caller was willing to wait."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


_BY_STATUS: dict[grpc.StatusCode, type[HeadwaterError]] = {
    kind.status: kind for kind in HeadwaterError.__subclasses__()
}


def from_rpc(error: grpc.RpcError, what: str) -> HeadwaterError:
    """Turn a failed call back into the error that the server raised.

    Args:
        error: what grpc raised.
        what: the call, for the message of errors that the server never saw, e.g. `search at 127.0.0.1:7070`.
    """
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None) or str(error)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnavailableError(f"{what}: this server does not offer the call ({details}); use one of the same version")
    kind = _BY_STATUS.get(code)
    if kind is None:
        return HeadwaterError(f"{what}: {details}")
    return kind(details if kind is not UnavailableError else f"{what}: {details}")
