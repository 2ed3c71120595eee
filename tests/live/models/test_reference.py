"""Parity with the reference implementation, on every run of its fixtures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simulator.live.models import sampling
from simulator.live.tracing.generate import Generation, generate
from simulator.live.training import losses
from simulator.schedulers.policies import Threshold

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def run(golden: Any, recorded: dict[str, Any], **options: Any) -> Generation:
    prompt = recorded.get("prompt_ids", golden.runs["prompt_ids"])
    return generate(
        golden.target,
        golden.draft,
        prompt,
        max_new_tokens=golden.runs["settings"]["max_new_tokens"],
        **options,
    )


def assert_same(generation: Generation, recorded: dict[str, Any]) -> None:
    rounds = generation.rounds
    assert generation.output_ids == recorded["output_ids"]
    assert [item.acceptance_length for item in rounds] == recorded["acceptance_lengths"]
    assert [item.proposal_length for item in rounds] == recorded["proposal_lengths"]
    assert [item.accepted for item in rounds] == recorded["accepted_draft_lengths"]
    assert len(rounds) == len(recorded["rounds"])
    for ours, theirs in zip(rounds, recorded["rounds"], strict=True):
        assert (ours.start, ours.anchor_token) == (theirs["start"], theirs["anchor_token"])
        assert ours.context_length == theirs["context_len"]
        assert list(ours.draft_tokens) == theirs["draft_tokens"]
        assert ours.verification_length == theirs["proposed"]
        assert ours.proposal_length == theirs["effective_proposal_length"]
        assert ours.next_token == theirs["next_token"]
        assert ours.stopped_in_draft == theirs["terminated_by_stop_token"]
        assert list(ours.confidence_logits or ()) == pytest.approx(theirs["confidence_logits"], abs=1e-4)
        if "draft_cache_after" in theirs:
            assert ours.start == theirs["draft_cache_after"]
            assert ours.start - ours.context_length == theirs["draft_cache_before"]


def test_greedy_run_with_every_intermediate(golden: Any) -> None:
    generation = run(golden, {}, keep_tensors=True)
    assert_same(generation, golden.runs["greedy"])
    assert generation.output_ids == golden.runs["target_greedy_output_ids"]
    for index, item in enumerate(generation.rounds):
        assert item.tensors is not None
        ours = {
            "target_hidden": item.tensors.features,
            "context_projected": item.tensors.context,
            "block_hidden": item.tensors.hidden,
            "base_logits": golden.draft.lm_head(item.tensors.hidden),
            "corrected_logits": item.tensors.logits,
            "verify_logits": item.tensors.target_logits,
            "confidence_logits": torch.tensor(item.confidence_logits),
            "confidence_probs": torch.tensor(item.confidence_logits).sigmoid(),
            "draft_tokens": torch.tensor(item.draft_tokens),
        }
        recorded = {
            name.partition(".")[2]: tensor
            for name, tensor in golden.tensors.items()
            if name.startswith(f"round{index}.")
        }
        assert {"target_hidden", "context_projected", "block_hidden"} <= recorded.keys()
        for name, tensor in recorded.items():
            torch.testing.assert_close(ours[name], tensor, **TOLERANCE, msg=f"round {index}: {name}")


def test_prefill_logits(golden: Any) -> None:
    tokens = torch.tensor([golden.runs["prompt_ids"]])
    logits = golden.target.forward(tokens, last_logits_only=True).logits[0, 0]
    torch.testing.assert_close(logits, golden.tensors["prefill.target_last_logits"], **TOLERANCE)


def test_metrics_runs(golden: Any) -> None:
    metrics = golden.runs["metrics"]
    generations = [run(golden, recorded) for recorded in metrics["runs"]]
    for generation, recorded in zip(generations, metrics["runs"], strict=True):
        assert_same(generation, recorded)
    rounds = [item for generation in generations for item in generation.rounds]
    summary, row = metrics["summary"], metrics["row"]
    committed, proposed = sum(r.acceptance_length for r in rounds), sum(r.proposal_length for r in rounds)
    assert len(rounds) == summary["proposal_count"]
    assert (committed, proposed) == (summary["acceptance_length_sum"], summary["proposal_length_sum"])
    positions = range(golden.draft.gamma)
    assert [sum(r.accepted > k for r in rounds) for k in positions] == summary["accepted_at_pos"]
    assert [sum(r.proposal_length > k for r in rounds) for k in positions] == summary["proposals_at_pos"]
    assert committed / len(rounds) == pytest.approx(row["acceptance_length"])
    assert committed / (proposed + len(rounds)) == pytest.approx(row["verify_rate"])


def test_stop_token_runs(golden: Any) -> None:
    for recorded in golden.runs["stop_token_runs"]:
        assert_same(run(golden, recorded, stop_token_ids=recorded["stop_token_ids"]), recorded)


def test_threshold_runs(golden: Any) -> None:
    for recorded in golden.runs["threshold_runs"]:
        scheduler = Threshold(recorded["confidence_threshold"])
        assert_same(run(golden, recorded, scheduler=scheduler), recorded)


def test_temperature_runs_replay_from_the_recorded_uniforms(golden: Any) -> None:
    for recorded in golden.runs["temperature_runs"]:
        stream = iter(recorded["uniforms"])
        generation = run(golden, recorded, temperature=recorded["temperature"], uniforms=stream)
        assert_same(generation, recorded)
        assert len(list(stream)) == len(recorded["uniforms"]) - recorded["uniforms_used"]


def test_temperature_runs_have_the_recorded_probabilities(golden: Any) -> None:
    for recorded in golden.runs["temperature_runs"]:
        temperature = recorded["temperature"]
        generation = run(
            golden, recorded, temperature=temperature, uniforms=recorded["uniforms"], keep_tensors=True
        )
        for ours, theirs in zip(generation.rounds, recorded["rounds"], strict=True):
            assert ours.tensors is not None
            tokens = torch.tensor(ours.draft_tokens)[:, None]
            q = sampling.distribution(ours.tensors.logits, temperature).gather(1, tokens)[:, 0]
            p = sampling.distribution(ours.tensors.target_logits[:-1], temperature).gather(1, tokens)[:, 0]
            assert q.tolist() == pytest.approx(theirs["draft_prob_of_token"], abs=1e-4)
            assert p.tolist() == pytest.approx(theirs["target_prob_of_token"], abs=1e-4)


def test_residual_distribution(golden: Any) -> None:
    recorded = golden.tensors
    position = _residual_position(recorded)
    weights = sampling.residual(recorded["sampling.target_probs"], _padded(recorded["sampling.draft_probs"]))
    normalised = weights[position] / weights[position].sum()
    torch.testing.assert_close(normalised, recorded["sampling.residual"], **TOLERANCE)


def _padded(draft_probs: torch.Tensor) -> torch.Tensor:
    return torch.cat((draft_probs, torch.zeros_like(draft_probs[:1])))


def _residual_position(recorded: dict[str, torch.Tensor]) -> int:
    """The fixture does not say where its residual was taken; only one position can have this support."""
    surplus = recorded["sampling.target_probs"][:-1] - recorded["sampling.draft_probs"]
    support = recorded["sampling.residual"] > 0
    return int(((surplus > 0) == support).float().mean(dim=1).argmax())


def blocks_of(golden: Any) -> losses.Blocks:
    recorded = golden.tensors
    return losses.make_blocks(
        recorded["train.input_ids"],
        recorded["train.loss_mask"],
        recorded["train.anchor_positions"],
        recorded["train.block_keep_mask"].bool(),
        golden.draft.gamma,
    )


def test_training_blocks(golden: Any) -> None:
    recorded, blocks = golden.tensors, blocks_of(golden)
    candidates = losses.anchor_candidates(recorded["train.loss_mask"])
    assert torch.equal(candidates, recorded["train.anchor_candidates"].bool())
    assert torch.equal(blocks.mask, recorded["train.eval_mask"].bool())
    assert torch.equal(blocks.labels[blocks.mask], recorded["train.target_ids"][blocks.mask])


def test_training_forward_losses_and_gradients(golden: Any) -> None:
    recorded, train, blocks = golden.tensors, golden.runs["train"], blocks_of(golden)
    draft = golden.draft
    trained = [name for name, _ in draft.named_parameters() if name in train["grad_norms"]]
    for name in trained:
        draft.get_parameter(name).requires_grad_(True)
    output = losses.forward_blocks(
        draft, recorded["train.target_hidden_states"], recorded["train.input_ids"], blocks
    )
    target = losses.target_logits(recorded["train.target_last_hidden_states"], draft.lm_head.weight, blocks)
    weights = losses.LossWeights(
        cross_entropy=train["weights"]["ce_loss_alpha"],
        l1=train["weights"]["l1_loss_alpha"],
        confidence=train["weights"]["confidence_head_alpha"],
        decay=train["weights"]["loss_decay_gamma"],
    )
    sums = losses.loss_sums(output, target, blocks, weights)
    loss = sums.total(weights)
    loss.backward()

    keep = recorded["train.block_keep_mask"].bool()
    assert output.confidence_logits is not None
    torch.testing.assert_close(
        output.confidence_logits[keep], recorded["train.confidence_pred"][keep], **TOLERANCE
    )
    assert keep[0, :4].all()
    torch.testing.assert_close(output.logits[0, :4], recorded["train.draft_logits_seq0_first4"], **TOLERANCE)
    torch.testing.assert_close(
        target[0, :4], recorded["train.aligned_target_logits_seq0_first4"], **TOLERANCE
    )

    for ours, theirs in ((sums.cross_entropy, "ce"), (sums.l1, "l1"), (sums.confidence, "confidence")):
        assert float(ours.detach()) == pytest.approx(train["loss_terms"][f"{theirs}_loss_num"], rel=1e-5)
        assert float(sums.weight) == pytest.approx(train["loss_terms"][f"{theirs}_loss_den"], rel=1e-5)
    assert float(loss.detach()) == pytest.approx(train["loss"], abs=1e-4)
    tau = losses.probabilistic_tau(sums.acceptance, blocks.mask)
    assert float(tau) == pytest.approx(train["metrics"]["train/tau_probabilistic"], abs=1e-4)

    assert set(trained) == set(train["grad_norms"])
    for name in trained:
        gradient = draft.get_parameter(name).grad
        assert float(gradient.norm()) == pytest.approx(train["grad_norms"][name], abs=1e-4)
        if f"train.grad.{name}" in recorded:
            torch.testing.assert_close(gradient, recorded[f"train.grad.{name}"], **TOLERANCE)
        draft.get_parameter(name).grad = None
        draft.get_parameter(name).requires_grad_(False)
