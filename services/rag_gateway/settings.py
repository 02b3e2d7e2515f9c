"""The settings of the gateway: the table [rag_gateway] of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.kernel.errors import InvalidInputError
from services.kernel.settings import from_table

TOP_K_MAX = 100
BUDGET_TOKENS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """An OpenAI-compatible endpoint: the table [rag_gateway.llm].

    Attributes:
        base_url: up to and including the version, for example http://127.0.0.1:11434/v1; empty means no model.
        model: the model's name, as the endpoint knows it.
        api_key_env: the environment variable that holds the key; empty when none is needed. The key itself is never
            in the configuration.
        timeout_s: the longest that a whole answer may take, in seconds.
        max_tokens: the longest answer.
        temperature: 0 is the most repeatable.
        prompt_price: the price of a million tokens of prompts, in your currency.
        answer_price: the price of a million tokens of answers.
    """

    base_url: str = ""
    model: str = ""
    api_key_env: str = ""
    timeout_s: float = 60.0
    max_tokens: int = 800
    temperature: float = 0.0
    prompt_price: float = 0.0
    answer_price: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings.

    Attributes:
        llm: the model that answers; without one the answers are extracts.
        budget_tokens: what the parts of a context may take together.
        top_k: how many chunks to look for.
        at_least_timeout_s: how long a question waits for the position that it demands, unless it says otherwise.
        profile_timeout_s: how long to wait for the profile before answering without it.
        search_timeout_s: how long to wait for the knowledge base before answering without it.
        conversation_timeout_s: how long to wait until the conversation's last turn can be read.
        purpose: the purpose for which profiles are read, where fields have policies; empty states none.
    """

    llm: LlmSettings = LlmSettings()
    budget_tokens: int = 3000
    top_k: int = 8
    at_least_timeout_s: float = 5.0
    profile_timeout_s: float = 1.0
    search_timeout_s: float = 3.0
    conversation_timeout_s: float = 0.5
    purpose: str = ""

    @classmethod
    def from_config(cls, table: Mapping[str, Any]) -> "Settings":
        """Read the table [rag_gateway]; raises InvalidInputError that names the setting which is wrong."""
        llm = table.get("llm", {})
        if not isinstance(llm, Mapping):
            raise InvalidInputError(f"rag_gateway.llm must be a table, not {llm!r}")
        settings = from_table(cls, {**table, "llm": from_table(LlmSettings, llm, "rag_gateway.llm")}, "rag_gateway")
        _check(settings)
        return settings


def _check(settings: Settings) -> None:
    llm = settings.llm
    if bool(llm.base_url) != bool(llm.model):
        missing = "model" if llm.base_url else "base_url"
        raise InvalidInputError(f"rag_gateway.llm.{missing} is missing: a model needs both base_url and model")
    if llm.base_url and not llm.base_url.startswith(("http://", "https://")):
        raise InvalidInputError(f"rag_gateway.llm.base_url: {llm.base_url!r} does not begin with http:// or https://")
    _between("budget_tokens", settings.budget_tokens, 1, BUDGET_TOKENS_MAX)
    _between("top_k", settings.top_k, 1, TOP_K_MAX)
    _between("llm.max_tokens", llm.max_tokens, 1, BUDGET_TOKENS_MAX)
    for name in ("at_least_timeout_s", "profile_timeout_s", "search_timeout_s", "conversation_timeout_s"):
        _between(name, getattr(settings, name), 0.001, 3600)
    _between("llm.timeout_s", llm.timeout_s, 0.001, 3600)


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"rag_gateway.{name} must be between {low} and {high}, not {value}")
