"""The exceptions that callers may see. `infra.runtime.error_table` maps each to its gRPC status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class LoraRetrieverError(Exception):
    """Base of every error shown to callers. The message says what failed, for which input, and what to do.

    `reason` is a stable UPPER_SNAKE_CASE name for programs to compare; `metadata` names the resources involved.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidArgumentError(LoraRetrieverError):
    """The request is invalid. `field` is the path of the field, such as "prompt.messages[0].parts[1].image"."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str, **metadata: str) -> None:
        self.field = field
        self.description = description
        super().__init__(f"{field}: {description}" if field else description, **metadata)

    def below(self, parent: str) -> InvalidArgumentError:
        """Return the same error with `parent` prepended to its field path."""
        separator = "" if not self.field or self.field.startswith("[") else "."
        return self.renamed(f"{parent}{separator}{self.field}")

    def renamed(self, field: str) -> InvalidArgumentError:
        """Return the same error, notes included, about `field`."""
        error = type(self)(field, self.description, **self.metadata)
        for note in getattr(self, "__notes__", ()):
            error.add_note(note)
        return error


class NotFoundError(LoraRetrieverError):
    """A named resource does not exist."""

    reason = "NOT_FOUND"


class AlreadyExistsError(LoraRetrieverError):
    """A resource of that name already exists."""

    reason = "ALREADY_EXISTS"


class ConflictError(LoraRetrieverError):
    """The resource was changed concurrently: read it again and retry."""

    reason = "REVISION_CONFLICT"


class FailedPreconditionError(LoraRetrieverError):
    """The request is well-formed, but the system is not in a state to serve it."""

    reason = "FAILED_PRECONDITION"


class BaseModelMismatchError(FailedPreconditionError):
    """An adapter was trained on a different base model from the one that runs."""

    reason = "BASE_MODEL_MISMATCH"


class CheckpointError(FailedPreconditionError):
    """A model or adapter folder is missing, incomplete or unsupported."""

    reason = "CHECKPOINT_INVALID"


class CapacityError(FailedPreconditionError):
    """The request can never fit this server, such as a rank beyond the adapter bank."""

    reason = "CAPACITY_EXCEEDED"


class OverloadedError(LoraRetrieverError):
    """A queue is full: retry later."""

    reason = "QUEUE_FULL"


class UnavailableError(LoraRetrieverError):
    """Something that this server needs is temporarily not available: retry."""

    reason = "UNAVAILABLE"


class UnreachableError(UnavailableError):
    """No connection to a server: nothing listens at its address, or the network fails. `target` is that address."""

    reason = "UNREACHABLE"

    def __init__(self, message: str, target: str = "", **metadata: str) -> None:
        super().__init__(message, target=target, **metadata)

    @property
    def target(self) -> str:
        """The address of the server that could not be reached, as the caller configured it."""
        return self.metadata.get("target", "")


class DeadlineError(LoraRetrieverError):
    """The caller's deadline passed before the work was finished."""

    reason = "DEADLINE_EXCEEDED"


class CancelledError(LoraRetrieverError):
    """The caller disconnected, or the work was cancelled."""

    reason = "CANCELLED"


class UnimplementedError(LoraRetrieverError):
    """The contract has this method, but the server does not offer it."""

    reason = "UNIMPLEMENTED"


class UnauthenticatedError(LoraRetrieverError):
    """The call carries no valid bearer token."""

    reason = "UNAUTHENTICATED"


class ConfigurationError(LoraRetrieverError):
    """A setting is wrong: the process cannot start."""

    reason = "CONFIGURATION_INVALID"


class InternalError(LoraRetrieverError):
    """A bug in the server. Every unexpected exception is reported as this, without its details."""

    reason = "INTERNAL"


@contextmanager
def field_path(path: str) -> Iterator[None]:
    """Prepend `path` to the field path of an InvalidArgumentError raised within."""
    try:
        yield
    except InvalidArgumentError as error:
        raise error.below(path) from error
