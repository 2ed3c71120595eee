"""Requests whose contexts outgrow those that a profile's step times are of."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from simulator.deployment.profile import Profile

DRAWN = 4096
"""Requests that are drawn to say so before a simulation. A choice: shares are then within 1.6%."""


def beyond_contexts(profile: Profile, prompt_tokens: ArrayLike, output_tokens: ArrayLike) -> str | None:
    """Say how many requests end longer than ``contexts_to`` of a profile, and what follows.

    Parameters
    ----------
    profile
        The profile; one that states no longest context says nothing.
    prompt_tokens, output_tokens
        Of each request, shape [requests].

    Returns
    -------
    str or None
        A warning, or None where every request stays within.
    """
    longest = np.asarray(prompt_tokens, dtype=np.int64) + np.asarray(output_tokens, dtype=np.int64)
    if profile.contexts_to is None or not longest.size:
        return None
    many = int(np.count_nonzero(longest > profile.contexts_to))
    if not many:
        return None
    return (
        f"{many:,} of {longest.size:,} requests ({many / longest.size:.1%}) grow beyond the contexts of "
        f"{profile.contexts_to:,} tokens that the step times are of, to {int(longest.max()):,} at most: "
        "attention is extrapolated in proportion to the context"
    )
