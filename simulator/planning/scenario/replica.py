"""The replica of a scenario: its GPUs, its memory, what it admits and how it prefills."""

from __future__ import annotations

from pydantic import Field

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile
from simulator.engine.limits import EngineLimits, Prefill
from simulator.planning.scenario.sections import Strict


class KvMemory(Strict):
    """KV-cache capacity of a replica from its memory and the model's shape.

    A replica of G GPUs has ``data_parallel`` groups. A group splits its layers over ``pipeline_parallel``
    stages and attention over the tensor-parallel ranks, G / (data_parallel * pipeline_parallel). On one GPU
    a token takes

        layers of a stage * 2 * KV heads of a rank * head_dim * bytes_per_value   (keys and values), or
        layers of a stage * latent_dim * bytes_per_value                          (latent attention).

    Tensor parallelism divides KV heads, so a rank holds ceil(kv_heads / ranks): at least one, which is
    then the same on several ranks. A latent vector has no heads to divide: every rank holds it whole. So

        tokens = data_parallel * (gpu_memory_gib * usable - weights_gib / G) * 2**30 / bytes on one GPU.

    weights_gib: of the whole replica, spread evenly (with data-parallel attention count its copies too).
    usable: leaves room for activations and graphs. data_parallel: groups that hold the caches of
    different requests (data-parallel attention); their sum is the capacity, as if they were equally full.
    """

    gpu_memory_gib: float = Field(gt=0)
    weights_gib: float = Field(ge=0)
    layers: int = Field(gt=0)
    kv_heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    latent_dim: int | None = Field(default=None, gt=0)
    bytes_per_value: float = Field(default=2.0, gt=0)
    usable: float = Field(default=0.9, gt=0, le=1)
    data_parallel: int = Field(default=1, gt=0)
    pipeline_parallel: int = Field(default=1, gt=0)

    def bytes_per_token(self, gpus: int) -> float:
        """Bytes that one token takes on the fullest GPU of a replica."""
        ranks = self._ranks(gpus)
        layers = -(-self.layers // self.pipeline_parallel)
        if self.latent_dim is not None and self.kv_heads is None and self.head_dim is None:
            return layers * self.latent_dim * self.bytes_per_value
        if self.latent_dim is None and self.kv_heads is not None and self.head_dim is not None:
            return layers * 2 * -(-self.kv_heads // ranks) * self.head_dim * self.bytes_per_value
        raise BadInputError(
            "needs either kv_heads and head_dim, or latent_dim", source="scenario", field="replica.kv_memory",
            remedy="give the shape of one attention layer",
        )  # fmt: skip

    def tokens(self, gpus: int) -> int:
        """Tokens that fit; ``BadInputError`` where the weights alone do not."""
        per_token = self.bytes_per_token(gpus)
        free_gib = gpus * self.gpu_memory_gib * self.usable - self.weights_gib
        if free_gib <= 0:
            raise BadInputError(
                f"leaves no memory for the KV cache: {self.weights_gib:g} GiB of weights in "
                f"{gpus * self.gpu_memory_gib * self.usable:g} usable",
                source="scenario", field="replica.kv_memory", remedy="use more GPUs per replica",
            )  # fmt: skip
        return int(self.data_parallel * (free_gib / gpus) * 2**30 / per_token)

    def _ranks(self, gpus: int) -> int:
        """Tensor-parallel ranks over which one group splits attention."""
        ranks, rest = divmod(gpus, self.data_parallel * self.pipeline_parallel)
        if rest or not ranks:
            raise BadInputError(
                f"data_parallel * pipeline_parallel must divide the replica's {gpus} GPUs",
                source="scenario", field="replica.kv_memory.data_parallel",
                value=self.data_parallel * self.pipeline_parallel,
                remedy="give replica.gpus the GPUs of the whole replica",
            )  # fmt: skip
        return ranks


class ReplicaSpec(Strict):
    """One replica: its GPUs, what it admits, and how it prefills.

    gpus: None takes what the profile says one replica is, or 1 where it does not say. chunk_tokens: None
    takes what the profile's engine sets, or 2,048.
    prefill_tokens_per_s: speed of one worker of the prefill pool. prefill_gpus: GPUs of such a worker; None
    takes as many as a replica has.
    """

    gpus: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=256, gt=0, le=1_000_000)
    kv_tokens: int | None = Field(default=None, gt=0)
    kv_memory: KvMemory | None = None
    prefill: Prefill = "elsewhere"
    chunk_tokens: int | None = Field(default=None, gt=0)
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    prefill_gpus: int | None = Field(default=None, gt=0)

    def gpus_of(self, profile: Profile) -> int:
        """GPUs of one replica; refuses a number that contradicts the profile's."""
        stated = profile.replica_gpus
        if self.gpus is None or stated is None or self.gpus == stated:
            return self.gpus or stated or 1
        raise BadInputError(
            f"contradicts profile {profile.name!r}, whose curve stands for a replica of {stated}",
            source="scenario", field="replica.gpus", value=self.gpus,
            remedy=f"write gpus: {stated}, or use a profile measured on a replica of {self.gpus}",
        )  # fmt: skip

    def limits(self, deployment: Deployment) -> EngineLimits:
        """Return what the serving model admits; the profile's own figures stand in where none are given."""
        if self.kv_tokens is not None and self.kv_memory is not None:
            raise BadInputError(
                "is given twice, by kv_tokens and by kv_memory", source="scenario", field="replica"
            )
        gpus = self.gpus_of(deployment.profile)
        capacity = self.kv_memory.tokens(gpus) if self.kv_memory else self.kv_tokens
        return deployment.limits(
            self.concurrency, kv_tokens=capacity, prefill=self.prefill, chunk_tokens=self.chunk_tokens,
            prefill_tokens_per_s=self.prefill_tokens_per_s,
        )  # fmt: skip
