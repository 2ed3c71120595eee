"""What a measured time depends on besides its sizes: compared before a run is held against a profile."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.families.fused import replace
from simulator.live.models.draft import Draft
from simulator.live.models.sampling import is_greedy
from simulator.live.models.targets import Target

GREEDY = "greedy"

UNSAID = {"sampling": GREEDY, "draft_attention": "sdpa", "fused": "nothing"}
"""What conditions were when profiles did not record them."""

DRAFT = "draft:"
"""What a drafter's entry in a provenance begins with; its name follows."""


def conditions_of(
    target: Target, *, attention: str, graphs: bool, temperature: float = 0.0, fuse: bool = True
) -> dict[str, str]:
    """Return the conditions of a measurement on ``target``, in words, for a profile's provenance.

    attention: the kernel asked for; what is returned are the kernels that run. graphs: whether CUDA graphs
    were asked for; a CPU records none. fuse: whether pieces of layers may run fused; what is returned are
    those that do. ``threads`` is there on a CPU alone: a GPU's step does not wait for them. ``weights`` is
    the digest of the target's config and weights (``Target.digest``). ``sampling`` says whether tokens are
    the most likely ones or drawn, which costs the same at every temperature above 0.
    """
    on_cpu = target.device.type == "cpu"
    ragged = RaggedTarget(target, attention, fuse=None if fuse else False)
    found = {
        "torch": str(torch.__version__),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": ragged.kernel_name,
        "draft_attention": ragged.draft_kernel_name,
        "fused": replace.names(ragged.replaced),
        "graphs": "on" if graphs and target.device.type == "cuda" else "off",
        "sampling": GREEDY if is_greedy(temperature) else "drawn",
        "weights": target.digest,
    }
    return found | ({"threads": str(torch.get_num_threads())} if on_cpu else {})


def digests_of(drafters: Mapping[str, Draft]) -> dict[str, str]:
    """Return the digest of each drafter's config and weights under ``draft:NAME``, for the provenance."""
    return {f"{DRAFT}{name}": draft.digest for name, draft in drafters.items()}
