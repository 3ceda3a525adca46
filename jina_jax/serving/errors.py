"""Errors of requests, in the one body that clients of every kind read."""

from __future__ import annotations

from typing import Any

_MOST_CHARACTERS = 2000
# Status → its usual code, Jina's where it has one, and the type by which OpenAI's clients know it.
_KINDS = {
    400: ("INPUT_INVALID", "invalid_request_error"),
    401: ("AUTH_INVALID_API_KEY", "authentication_error"),
    404: ("RESOURCE_NOT_FOUND", "not_found_error"),
    405: ("METHOD_NOT_ALLOWED", "invalid_request_error"),
    408: ("REQUEST_TIMEOUT", "invalid_request_error"),
    413: ("INPUT_TOO_LARGE", "invalid_request_error"),
    415: ("UNSUPPORTED_ENCODING", "invalid_request_error"),
    422: ("INPUT_INVALID", "invalid_request_error"),
    429: ("RATE_CONCURRENCY_LIMIT_EXCEEDED", "rate_limit_error"),
    431: ("HEAD_TOO_LARGE", "invalid_request_error"),
    500: ("INTERNAL_ERROR", "server_error"),
    503: ("SERVICE_UNAVAILABLE", "server_error"),
    504: ("SERVICE_TIMEOUT", "server_error"),
}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
      status: of HTTP.
      message: the field, the rule, what came and what was expected.
      field: of the body that is at fault; None where none is.
      code: None for the usual one of the status.
      headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        field: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, _shortened(message)
        self.field = field and _shortened(field)
        self.headers = headers or {}
        usual, self.type = _KINDS.get(status, _KINDS[400 if status < 500 else 500])
        self.code = code or usual

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the body: Jina's clients read ``detail``, those of OpenAI and TEI ``error``."""
        message, code = self.message, self.code
        error = {"message": message, "type": self.type, "param": self.field, "code": code}
        found: dict[str, Any] = {"detail": message, "code": code}
        found |= {"request_id": request_id, "error": error}
        if self.status == 422:
            found["errors"] = [{"field": self.field, "message": message, "type": "value_error"}]
        return found


def _shortened(text: str) -> str:
    """Return a text without its middle if it is long: what came may have megabytes."""
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"


def invalid(field: str, message: str) -> ApiError:
    """Return the error of a field with a value that cannot be taken."""
    return ApiError(422, f"{field}: {message}", field)


def left_error() -> ApiError:
    """Return the error of a request whose client left; nobody reads it."""
    return ApiError(499, "the client left")


def time_error(seconds: float) -> ApiError:
    """Return the error of a request that took longer than it may."""
    return ApiError(504, f"no result within {seconds:g} seconds")
