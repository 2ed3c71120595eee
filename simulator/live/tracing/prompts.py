"""Prompts out of a JSONL file: text or conversations, through the target's own tokenizer and chat template.

A line is an object with one of

- ``turns``: a list of texts, as in DeepSpec's evaluation files; the first is the user's message
- ``messages``: a conversation, ``[{"role": "user", "content": "..."}, ...]``
- ``prompt``: one text, the user's message
- ``prompt_ids``: token ids, used as they are

Other fields are left alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.core.errors import BadInputError
from simulator.core.reading import decoded, parse_json, read_bounded

FORMS = ("turns", "messages", "prompt", "prompt_ids")


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How lines become prompts.

    raw: text goes to the tokenizer as it is, without the chat template. thinking: what the template is
    told of ``enable_thinking``; templates that do not know it leave it out. sequences: at most so many,
    drawn with ``seed`` by Python's shuffle where the file has more, as DeepSpec's evaluation does.
    """

    raw: bool = False
    thinking: bool = False
    sequences: int | None = None
    seed: int = 0


def read_prompts(path: Path, tokenizer_folder: Path | None, options: PromptOptions) -> list[list[int]]:
    """Token ids of each prompt, in the order in which they are traced.

    Raises ``BadInputError`` that names the file and the line of a mistake, and for a tokenizer that is
    missing or has no chat template where one is needed.
    """
    lines = _lines(path)
    if options.sequences is not None and len(lines) > options.sequences:
        random.Random(options.seed).shuffle(lines)  # a selection that can be repeated
        lines = lines[: options.sequences]
    needs_tokenizer = any("prompt_ids" not in line for _, line in lines)
    if needs_tokenizer and tokenizer_folder is None:
        raise BadInputError(
            "has a text, and the target is no folder with a tokenizer",
            source=str(path),
            remedy="give prompt_ids",
        )
    encoder = _Encoder(tokenizer_folder, options) if tokenizer_folder and needs_tokenizer else None
    return [_encoded(line, where, encoder) for where, line in lines]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Objects of the file and where each stands."""
    found = []
    for number, text in enumerate(decoded(read_bounded(path), str(path)).split("\n"), start=1):
        if text.strip():
            where = f"{path}, line {number}"
            line = parse_json(text, where, is_line=True)
            if not isinstance(line, dict) or sum(form in line for form in FORMS) != 1:
                raise BadInputError(
                    f"must be an object with one of {', '.join(FORMS)}", source=where,
                    remedy='as in {"prompt": "Why is the sky blue?"}',
                )  # fmt: skip
            found.append((where, line))
    if not found:
        raise BadInputError("holds no prompt", source=str(path), remedy="give one JSON object a line")
    return found


def _encoded(line: dict[str, Any], where: str, encoder: _Encoder | None) -> list[int]:
    if "prompt_ids" in line:
        ids = line["prompt_ids"]
        if not isinstance(ids, list) or not ids or any(type(each) is not int for each in ids):
            raise BadInputError(
                "must be a list of token ids, not empty", source=where, field="prompt_ids", value=ids
            )
        return list(ids)
    assert encoder is not None
    return encoder.ids(_conversation(line, where), where)


def _conversation(line: dict[str, Any], where: str) -> list[dict[str, str]]:
    """Messages of a line, whatever its form."""
    if "messages" in line:
        messages = line["messages"]
        if isinstance(messages, list) and messages and all(_is_message(each) for each in messages):
            return messages
        raise BadInputError(
            "must be a list of objects with role and content, both text", source=where, field="messages",
            value=messages,
        )  # fmt: skip
    field = "turns" if "turns" in line else "prompt"
    text = line[field]
    if field == "turns":
        text = text[0] if isinstance(text, list) and text else None
    if not isinstance(text, str) or not text:
        what = "a list of texts" if field == "turns" else "text"
        raise BadInputError(f"must be {what}, not empty", source=where, field=field, value=line[field])
    return [{"role": "user", "content": text}]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


class _Encoder:
    """The tokenizer of a model folder, with its chat template."""

    def __init__(self, folder: Path, options: PromptOptions) -> None:
        from transformers import AutoTokenizer

        self._options, self._source = options, str(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises whatever the tokenizer's class trips over
            raise BadInputError(
                f"holds no tokenizer that transformers can load: {error}", source=self._source,
                remedy="put the model's tokenizer files there, or give prompt_ids",
            ) from error  # fmt: skip
        if not options.raw and not self._tokenizer.chat_template:
            raise BadInputError(
                "its tokenizer has no chat template", source=self._source,
                remedy="use the instruction-tuned model, or --raw for text without a template",
            )  # fmt: skip

    def ids(self, messages: Sequence[dict[str, str]], where: str) -> list[int]:
        """Token ids of a conversation up to where the assistant begins; of the text alone when raw."""
        if self._options.raw:
            if len(messages) != 1:
                raise BadInputError(
                    "is a conversation, which needs a chat template", source=where, field="messages",
                    remedy="leave out --raw",
                )  # fmt: skip
            return list(self._tokenizer(messages[0]["content"])["input_ids"])
        try:
            text = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False,
                enable_thinking=self._options.thinking,
            )  # fmt: skip
        except Exception as error:  # a template raises its own complaints, as of a role it does not know
            raise BadInputError(
                f"cannot be put into the chat template: {error}", source=where, field="messages",
                remedy="check roles and their order",
            ) from error  # fmt: skip
        # The template writes special tokens itself, as a beginning of sequence.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
