"""Bound and estimate what requests cost, without the model's tokenizer."""

from collections.abc import Iterable, Mapping, Sequence

Chat = Sequence[Mapping[str, str]]
"""The messages of a request, each with its `content`."""

BYTES_PER_TOKEN = 3
"""Chosen here: a Chinese character has three bytes and is at most about a token; English has about four per token."""
_OF_TEMPLATE = 64
"""Chosen here: tokens that a chat template puts around a message; those that are known have fewer than 32."""


def most_tokens(chat: Chat, answer_tokens: int) -> int:
    """Return the most tokens that a request may cost: a token has at least a byte."""
    return sum(len(message["content"].encode()) + _OF_TEMPLATE for message in chat) + answer_tokens


def estimate_tokens(chats: Iterable[Chat]) -> int:
    """Estimate the tokens of prompts; most models count fewer."""
    return sum(len(message["content"].encode()) for chat in chats for message in chat) // BYTES_PER_TOKEN
