"""What the live engine is compared with: transformers' own ``generate`` over a static cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from simulator.live.device import is_out_of_memory, now_s, synchronise
from simulator.live.models.targets import Target


class StaticGenerate:
    """Greedy decoding of fixed prompts by transformers, compiled on a GPU; call it repeatedly to time it.

    prompts: int64 [R, P] on the target's device. output_tokens: N of each request; there is no
    end-of-sequence token. compiles: whether transformers may compile decoding; None for on a GPU, the only
    place where it does so by itself. Where compilation fails, ``tell`` says so and it goes on without.
    """

    def __init__(
        self,
        target: Target,
        prompts: Tensor,
        output_tokens: int,
        tell: Callable[[str], None],
        *,
        compiles: bool | None = None,
    ) -> None:
        self.target, self.prompts, self.output_tokens = target, prompts, output_tokens
        self._compiles = target.device.type == "cuda" if compiles is None else compiles
        self._warm_up(tell)

    @property
    def compiled(self) -> bool:
        """Whether decode steps run compiled."""
        # transformers keeps what it compiled on the model, under this name since it compiles by itself.
        return self._compiles and getattr(self.target.model, "_compiled_call", None) is not None

    def tokens(self) -> Tensor:
        """Everybody's output, int64 [R, N]."""
        return self._generate(lambda generated: None)

    def decode_s(self, first: int) -> float:
        """Seconds from when every request has ``first`` output tokens until all have all of theirs.

        Prefill is left out, and so are the first decode steps, in which CUDA graphs are recorded anew
        where transformers makes a new cache for each call.
        """
        start_s = 0.0

        def note(generated: int) -> None:
            nonlocal start_s
            if generated == first:
                synchronise(self.target.device)
                start_s = now_s()

        self._generate(note)
        synchronise(self.target.device)
        return now_s() - start_s

    def forget(self) -> None:
        """Release the cache and the compiled code that transformers keeps on the model."""
        for name in ("_cache", "_compiled_call"):
            with suppress(AttributeError):
                delattr(self.target.model, name)
        if self._compiles:
            torch.compiler.reset()

    def _warm_up(self, tell: Callable[[str], None]) -> None:
        """Compile, and run once more for graphs that are recorded on the second call."""
        try:
            for _ in range(2):
                self.tokens()
        except RuntimeError as error:  # no compiler here, or none that takes this model
            if not self._compiles or is_out_of_memory(error):
                raise
            tell(f"generate runs without torch.compile, which failed: {error}")
            self.forget()
            self._compiles = False
            self.tokens()

    def _generate(self, note: Callable[[int], None]) -> Tensor:
        """Generate outputs [R, N]; ``note`` is called with the output tokens so far, at every step."""
        requests, prompt_tokens = self.prompts.shape
        going_on = torch.zeros(requests, dtype=torch.bool, device=self.prompts.device)

        def criterion(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            note(ids.shape[1] - prompt_tokens)
            return going_on

        with self._settings():
            ids: Tensor = self.target.model.generate(
                self.prompts,
                attention_mask=torch.ones_like(self.prompts),
                stopping_criteria=StoppingCriteriaList([criterion]),
            )
        return ids[:, prompt_tokens:]

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Put the model's own generation settings aside: what they hold wins over a None that is passed."""
        model, settings = self.target.model, cast(Any, GenerationConfig)
        before = model.generation_config
        model.generation_config = settings(
            max_new_tokens=self.output_tokens, do_sample=False, cache_implementation="static",
            disable_compile=not self._compiles,
        )  # fmt: skip
        try:
            yield
        finally:
            model.generation_config = before
