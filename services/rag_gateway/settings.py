"""The settings of the gateway: the table [rag_gateway] of the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.kernel.settings import Section

TOP_K_MAX = 100
BUDGET_TOKENS_MAX = 1_000_000
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 0.001, 3600
TEMPERATURE_MAX = 2  # of OpenAI's API


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
        temperature: 0 is the most repeatable, 2 the least.
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
        read = Section("rag_gateway", table, cls())
        return cls(
            llm=_llm(read.section("llm", LlmSettings())),
            budget_tokens=read.whole("budget_tokens", 1, BUDGET_TOKENS_MAX),
            top_k=read.whole("top_k", 1, TOP_K_MAX),
            at_least_timeout_s=_timeout_s(read, "at_least_timeout_s"),
            profile_timeout_s=_timeout_s(read, "profile_timeout_s"),
            search_timeout_s=_timeout_s(read, "search_timeout_s"),
            conversation_timeout_s=_timeout_s(read, "conversation_timeout_s"),
            purpose=read.text("purpose"),
        )


def _llm(read: Section) -> LlmSettings:
    settings = LlmSettings(
        base_url=read.url("base_url"),
        model=read.text("model"),
        api_key_env=read.text("api_key_env"),
        timeout_s=_timeout_s(read, "timeout_s"),
        max_tokens=read.whole("max_tokens", 1, BUDGET_TOKENS_MAX),
        temperature=read.number("temperature", 0, TEMPERATURE_MAX),
        prompt_price=read.number("prompt_price", 0),
        answer_price=read.number("answer_price", 0),
    )
    if bool(settings.base_url) != bool(settings.model):
        missing = "model" if settings.base_url else "base_url"
        raise read.refusal(missing, "is missing: a model needs both base_url and model")
    return settings


def _timeout_s(read: Section, name: str) -> float:
    return read.number(name, TIMEOUT_S_MIN, TIMEOUT_S_MAX)
