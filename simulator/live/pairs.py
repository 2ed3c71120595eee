"""Whether a draft and a target belong together; asked before anything is generated with them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from simulator.errors import BadInputError
from simulator.files import read_json
from simulator.live.drafts import Draft
from simulator.live.targets import Target

_TOKENIZER_FILE = "tokenizer.json"


def check_pair(target: Target, draft: Draft) -> None:
    """Raise ``BadInputError`` unless the draft can read this target's states and speak its tokens.

    Compares vocabulary, width, depth, dtype, device and, where both folders hold a tokenizer, every
    token's id.
    """
    weight = draft.embed_tokens.weight
    trained_for = "use the target that the draft was trained with"
    converted = "load both with the same dtype= and device="
    for field, of_draft, of_target, remedy in (
        ("vocab_size", draft.shape.vocab_size, target.vocab_size, trained_for),
        ("hidden_size", draft.shape.hidden_size, target.hidden_size, trained_for),
        ("num_target_layers", draft.num_target_layers, target.num_layers, trained_for),
        ("dtype", weight.dtype, target.dtype, converted),
        ("device", weight.device, target.device, converted),
    ):
        if of_draft != of_target:
            raise BadInputError(
                f"is {of_draft} for the draft and {of_target} for the target {target.name}",
                source=draft.source or "draft",
                field=field,
                remedy=remedy,
            )
    if draft.source is not None and target.folder is not None:
        _check_tokenizers(Path(draft.source), target.folder)


def _check_tokenizers(draft_folder: Path, target_folder: Path) -> None:
    ours, theirs = draft_folder / _TOKENIZER_FILE, target_folder / _TOKENIZER_FILE
    if not (ours.is_file() and theirs.is_file()):
        return
    different = _token_ids(ours) ^ _token_ids(theirs)
    if different:
        raise BadInputError(
            f"gives {len(different)} tokens other ids than {theirs} does",
            source=str(ours),
            field="model.vocab",
            value=sorted(different)[0],
            remedy="use the target that the draft was trained with",
        )


@lru_cache(maxsize=8)  # large vocabularies take a good part of a second to parse
def _token_ids(path: Path) -> frozenset[tuple[str, int]]:
    tokenizer = read_json(path)
    try:
        if not isinstance(tokenizer, dict):
            raise TypeError("not a JSON object")
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram models: [token, score] in id order
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    except (KeyError, TypeError, IndexError) as error:
        raise BadInputError(
            f"is not a tokenizer: {error!r}", source=str(path), remedy="export it again"
        ) from error
    return frozenset({**vocabulary, **added}.items())
