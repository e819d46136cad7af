"""Google's way to refuse, in google.rpc's form, and to read a request's fields."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from starlette.responses import Response

from simulator.answers import INTERNAL_URL, json_answer, secrets
from simulator.behaviour import Play

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
PROMPT_BLOCKED = (
    "Image generation failed with the following error: The prompt could not be submitted, as it may contain words "
    "that the service's policies do not allow. Error Code: 58061214"
)


class RefusalError(Exception):
    """The request is answered with an error in google.rpc's form."""

    def __init__(
        self,
        code: int,
        message: str,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.details = details
        self.headers = headers

    def answer(self) -> Response:
        error: dict[str, Any] = {"code": self.code, "message": str(self), "status": STATUSES[self.code]}
        if self.details:
            error["details"] = self.details
        return json_answer({"error": error}, self.code, self.headers)


def not_found(upstream: str) -> RefusalError:
    return RefusalError(404, f"models/{upstream} is not found, or is not supported for this method.")


def refuse(play: Play, upstream: str) -> None:
    """Raise RefusalError if the scenario does not accept the job."""
    match play.scenario:
        case "http_503":
            raise RefusalError(503, "The model is overloaded. Please try again later.")
        case "busy_503":
            retry = {"retry-after": play.retry_after_s}
            raise RefusalError(503, "The model is overloaded. Please try again later.", headers=retry)
        case "rate_limited_429":
            headers = {} if play.retry_after is None else {"retry-after": play.retry_after_s}
            message = "Resource has been exhausted: quota of image generation requests per minute."
            raise RefusalError(429, message, headers=headers)
        case "unauthorized_401":
            raise RefusalError(401, "Request had invalid authentication credentials.")
        case "api_key_invalid_400":
            reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            raise RefusalError(400, "API key not valid. Please pass a valid API key.", [reason])
        case "retired":
            raise not_found(upstream)


def fail(play: Play, key: str) -> None:
    """Raise RefusalError if the scenario fails the accepted job."""
    match play.scenario:
        case "http_500":
            raise RefusalError(500, "An internal error has occurred.")
        case "prompt_blocked":
            raise RefusalError(400, PROMPT_BLOCKED)
        case "secret_in_error":
            message = f"Upstream call to {INTERNAL_URL} with key {key} was refused."
            raise RefusalError(400, message, headers=secrets(key))


def text(given: dict[str, Any], name: str) -> str | None:
    value = given.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise RefusalError(400, f"{name} must be a text.")
    return value


def flag(given: dict[str, Any], name: str, default: bool) -> bool:
    value = given.pop(name, default)
    if not isinstance(value, bool):
        raise RefusalError(400, f"{name} must be true or false.")
    return value


def whole(given: dict[str, Any], name: str, least: int, most: int, default: int) -> int:
    value = given.pop(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RefusalError(400, f"{name} must be between {least} and {most}, inclusive; got {value}.")
    return value


def choice(given: dict[str, Any], name: str, options: tuple[str, ...]) -> str:
    """Read a field that has one of these options, in any case; the first one is the default."""
    value = given.pop(name, options[0])
    for option in options:
        if isinstance(value, str) and value.lower() == option.lower():
            return option
    raise RefusalError(400, f"{value!r} is not supported for {name}; supported are {', '.join(options)}.")
