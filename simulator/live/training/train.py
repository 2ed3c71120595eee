"""Training a target and its drafts from text: the product behind ``dspark-sim train``.

The target learns the text; then, frozen, it teaches three drafts that differ in one thing each: DSpark,
DFlash (the same backbone without sequential and confidence heads, cross-entropy alone) and MTP-1. A run
directory holds the tokenizer, one folder for each model, losses.csv, and checkpoints/ while it is under
way; the same command continues an interrupted run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from simulator.core.errors import BadInputError
from simulator.core.files import write_json
from simulator.core.reading import read_json
from simulator.live.device import device_name, software
from simulator.live.models.checkpoints import CONFIG_FILE, save_model
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.models.drafts.mtp import MTPDraft
from simulator.live.models.pairs import new_dspark, new_mtp, save_draft
from simulator.live.models.targets import Target, load_target
from simulator.live.training import losses
from simulator.live.training.corpus import Corpus, load_corpus
from simulator.live.training.log import write_log
from simulator.live.training.losses import LossWeights
from simulator.live.training.optimisation import Losses, LossOfStep, Progress, Schedule, optimise
from simulator.live.training.presets import Preset, find_preset
from simulator.live.training.tokens import (
    END_ID,
    MASK_ID,
    TokenStreams,
    load_tokenizer,
    save_tokenizer,
    step_generator,
    train_tokenizer,
)

RUN_FILE = "run.json"

DRAFTS = ("dspark", "dflash", "mtp")
"""Folders of the drafts in a run directory, beside ``target``."""

DSPARK_LOSSES = LossWeights()

DFLASH_LOSSES = LossWeights(cross_entropy=1.0, l1=0.0, confidence=0.0)


def train(
    preset: str,
    text: Path | str | None,
    out: Path | str,
    *,
    device: str = "cpu",
    seed: int = 0,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train tokenizer, target and drafts into the run directory ``out``, or go on where it stopped.

    text: a folder (see ``corpus.folder_files``), None for the default corpus. on_step: called after
    every step. Weights are stored in bfloat16; on CUDA they are also trained under its autocast.
    Raises ``BadInputError`` for an unknown preset, too little text, and a run directory that was
    begun with another preset, seed or text.
    """
    run = _Run(find_preset(preset), load_corpus(text), Path(out), torch.device(device), seed, on_step)
    run.begin(preset)
    target = run.target()
    for name, weights in (("dspark", DSPARK_LOSSES), ("dflash", DFLASH_LOSSES)):
        run.draft(name, target, weights)
    run.mtp(target)


@dataclass(frozen=True)
class _Run:
    """What all models of one run directory share."""

    preset: Preset
    corpus: Corpus
    out: Path
    device: torch.device
    seed: int
    on_step: Callable[[Progress], None]

    def begin(self, preset_name: str) -> None:
        """Say what this run is, or check that it is the one begun here; then make the tokenizer."""
        described = {
            "preset": preset_name,
            "settings": json.loads(json.dumps(asdict(self.preset))),
            "seed": self.seed,
            "corpus": self.corpus.name,
            "corpus_sha256": self.corpus.digest,
        }
        origin = {
            "date": date.today().isoformat(),
            "device": device_name(self.device),
            "software": software(),
        }
        path = self.out / RUN_FILE
        if path.is_file():
            begun = read_json(path)
            for field, value in described.items():
                if not isinstance(begun, dict) or begun.get(field) != value:
                    raise BadInputError(
                        f"this run was begun otherwise, not with {value!r}",
                        source=str(path),
                        field=field,
                        value=begun.get(field) if isinstance(begun, dict) else begun,
                        remedy="choose a new output folder, or repeat the command that began this one",
                    )
            return
        texts = (text for domain in self.corpus.domains for text in self.corpus.texts("train", domain))
        save_tokenizer(train_tokenizer(texts, self.preset.vocab_size), self.out)
        origin = {"date": date.today().isoformat(), "device": device_name(self.device)}
        write_json(path, described | origin | {"software": software()})

    def target(self) -> Target:
        """Load the trained target from its folder: the drafts learn from the weights that ship."""
        folder = self.out / "target"
        if not (folder / CONFIG_FILE).is_file():
            model = _new_target(self.preset, self.seed).to(self.device)
            self._optimise("target", model, self._target_loss(model), self.preset.target)
            _save_target(model, folder)
            self._finish("target")
        return load_target(folder, dtype=torch.float32, device=self.device)

    def draft(self, name: str, target: Target, weights: LossWeights) -> None:
        """Train DSpark, or DFlash where the losses ask for neither distribution nor confidence."""
        heads = weights.confidence > 0
        if (self.out / name / CONFIG_FILE).is_file():
            return
        preset = self.preset
        draft = new_dspark(
            target,
            mask_token_id=MASK_ID,
            block_size=preset.gamma,
            num_layers=preset.draft_layers,
            target_layer_ids=preset.target_layer_ids,
            markov_rank=preset.markov_rank if heads else 0,
            confidence=heads,
            num_anchors=preset.anchors,
            seed=self.seed,
        )
        self._optimise(name, draft, self._block_loss(name, draft, target, weights), preset.draft)
        save_draft(draft.to(torch.bfloat16), self.out / name)
        self._finish(name)

    def mtp(self, target: Target) -> None:
        """Train MTP-1."""
        if (self.out / "mtp" / CONFIG_FILE).is_file():
            return
        draft = new_mtp(target, seed=self.seed)
        self._optimise("mtp", draft, self._mtp_loss(draft, target), self.preset.mtp)
        save_draft(draft.to(torch.bfloat16), self.out / "mtp")
        self._finish("mtp")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return load_tokenizer(self.out)

    @cached_property
    def streams(self) -> TokenStreams:
        """The training text as tokens."""
        return TokenStreams.of(self.corpus, "train", self.tokenizer)

    def _optimise(self, name: str, module: nn.Module, loss: LossOfStep, schedule: Schedule) -> None:
        checkpoint = self.out / "checkpoints" / f"{name}.safetensors"
        write_log(self.out, name, optimise(name, module, loss, schedule, checkpoint, self.on_step))

    def _finish(self, name: str) -> None:
        save_tokenizer(self.tokenizer, self.out / name)
        (self.out / "checkpoints" / f"{name}.safetensors").unlink()

    def _batches(self, name: str) -> Callable[[int], tuple[Tensor, torch.Generator]]:
        """Step -> tokens [sequences, length] on the device, and the generator for the step's other draws."""
        streams, preset, seed, device = self.streams, self.preset, self.seed, self.device

        def batch(step: int) -> tuple[Tensor, torch.Generator]:
            generator = step_generator(seed, name, step)
            return streams.batch(preset.sequences, preset.length, generator).to(device), generator

        return batch

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _target_loss(self, model: Any) -> LossOfStep:
        batches = self._batches("target")

        def loss(step: int) -> tuple[Tensor, Losses]:
            tokens, _ = batches(step)
            with self._autocast():
                logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            value = _next_token_loss(logits, tokens[:, 1:])
            return value, {"loss": value.item(), "cross_entropy": value.item()}

        return loss

    def _block_loss(self, name: str, draft: DSparkDraft, target: Target, weights: LossWeights) -> LossOfStep:
        # Both drafts see the same batches and anchors: what differs between them is the drafts.
        batches = self._batches("blocks")
        layer_ids = (*draft.target_layer_ids, target.num_layers)
        width = target.hidden_size

        def loss(step: int) -> tuple[Tensor, Losses]:
            tokens, generator = batches(step)
            supervised = torch.ones(tokens.shape, dtype=torch.bool)
            anchors, keep = losses.sample_anchors(supervised, self.preset.anchors, generator)
            blocks = losses.make_blocks(
                tokens, supervised.to(self.device), anchors.to(self.device), keep.to(self.device), draft.gamma
            )
            with self._autocast():
                states = target.forward(tokens, layer_ids=layer_ids, last_logits_only=True).features
                output = losses.forward_blocks(draft, states[..., :-width], tokens, blocks)
                wanted = losses.target_logits(states[..., -width:], target.head, blocks)
            sums = losses.loss_sums(output, wanted, blocks, weights)
            return sums.total(weights), _described(sums, blocks, weights)

        return loss

    def _mtp_loss(self, draft: MTPDraft, target: Target) -> LossOfStep:
        batches = self._batches("mtp")

        def loss(step: int) -> tuple[Tensor, Losses]:
            tokens, _ = batches(step)
            with self._autocast():
                states = target.forward(
                    tokens, layer_ids=draft.target_layer_ids, last_logits_only=True
                ).features
                # Outputs for i say token i + 2; the target's own state at i + 1 says the same.
                logits = draft.lm_head(draft.sequence_hidden(states[:, :-2], tokens[:, 1:-1]))
                wanted = linear(states[:, 1:-1], target.head)
            distance = _distance(logits, wanted)
            ce, l1 = _next_token_loss(logits, tokens[:, 2:]), distance.mean()
            value = DSPARK_LOSSES.cross_entropy * ce + DSPARK_LOSSES.l1 * l1
            tau = 2 - l1.item() / 2
            return value, {
                "loss": value.item(),
                "cross_entropy": ce.item(),
                "l1": l1.item(),
                "accepted_length": tau,
            }

        return loss


def _described(sums: losses.LossSums, blocks: losses.Blocks, weights: LossWeights) -> Losses:
    weight = sums.weight.item()
    return {
        "loss": sums.total(weights).item(),
        "cross_entropy": sums.cross_entropy.item() / weight,
        "l1": sums.l1.item() / weight,
        "confidence": sums.confidence.item() / weight,
        "accepted_length": losses.probabilistic_tau(sums.acceptance, blocks.mask).item(),
    }


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def _distance(logits: Tensor, wanted: Tensor) -> Tensor:
    """||p_target - q_draft||_1 of each position, from both models' logits [..., V]."""
    return (torch.softmax(logits.float(), -1) - torch.softmax(wanted.float(), -1)).abs().sum(-1)


def _new_target(preset: Preset, seed: int) -> Any:
    config = transformers.Qwen3Config(
        vocab_size=preset.vocab_size,
        hidden_size=preset.hidden_size,
        intermediate_size=preset.intermediate_size,
        num_hidden_layers=preset.target_layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.key_value_heads,
        head_dim=preset.hidden_size // preset.heads,
        max_position_embeddings=4 * preset.length,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        architectures=["Qwen3ForCausalLM"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.Qwen3ForCausalLM(config)


def _save_target(model: Any, folder: Path) -> None:
    model.to(torch.bfloat16)
    config = json.loads(model.config.to_json_string(use_diff=False)) | {"dtype": "bfloat16"}
    tensors = dict(model.state_dict())
    tensors.pop("lm_head.weight")  # tied to the embedding: one tensor under two names
    save_model(folder, config, tensors)
