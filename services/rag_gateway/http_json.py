"""Between JSON and the messages of `protos/`."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from headwater.common.v1 import common_pb2
from headwater.rag_gateway.v1 import service_pb2
from services.kernel.errors import InvalidInputError


def as_json(message: Message) -> dict[str, Any]:
    """A message as a JSON object, with the names of `protos/` and every field in it."""
    document: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return document


def identifier_of(text: str) -> common_pb2.Identifier | None:
    """The identifier that kind:value names; None when the text is none."""
    kind, separator, value = text.strip().partition(":")
    if not separator or not kind.strip() or not value.strip():
        return None
    return common_pb2.Identifier(kind=kind.strip(), value=value.strip())


def question_of(document: Mapping[str, Any], tenant: str) -> service_pb2.Question:
    """The question that a JSON object asks.

    Args:
        document: `question`, and optionally `as` (kind:value), `conversation_id`, `at_least`, `at_least_timeout_s`,
            `access` (a list of labels), `budget_tokens`, `top_k`.
        tenant: whose question it is.

    Raises:
        InvalidInputError: one of them is not what it should be.
    """
    question = service_pb2.Question(
        tenant=tenant,
        text=_text(document, "question"),
        conversation_id=_text(document, "conversation_id"),
        at_least=_text(document, "at_least"),
        budget_tokens=_count(document, "budget_tokens"),
        top_k=_count(document, "top_k"),
    )
    asker = _text(document, "as")
    if asker:
        identifier = identifier_of(asker)
        if identifier is None:
            raise InvalidInputError(f"as: {asker!r} is not kind:value, for example email:ada@example.com")
        getattr(question, "as").CopyFrom(identifier)
    access = document.get("access") or []
    if not isinstance(access, list) or not all(isinstance(label, str) for label in access):
        raise InvalidInputError("access: send a list of labels")
    question.access.extend(access)
    timeout_s = document.get("at_least_timeout_s")
    if timeout_s is not None:
        if type(timeout_s) not in (int, float) or not 0 <= timeout_s <= 3600:
            raise InvalidInputError("at_least_timeout_s: send seconds, from 0 to 3600")
        question.at_least_timeout.FromMilliseconds(int(timeout_s * 1000))
    return question


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name, "")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInputError(f"{name}: send text, not {value!r:.60}")
    return value


def _count(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise InvalidInputError(f"{name}: send a number that is not negative")
    return value
