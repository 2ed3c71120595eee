"""The scenario that `dspark-sim plan --init` writes."""

EXAMPLE = """\
# What is planned: which GPU and model, for which traffic, under which promises, at what price.
# `dspark-sim plan THIS_FILE --out DIR` answers; docs/planning.md says how.
name: Chat on DeepSeek-V4-Flash

# Cost of a step: a shipped profile (`dspark-sim list`) or a profile file.
profile: deepseek-v4-flash
# Or a model on a GPU (`dspark-sim list --models --gpus`), whose cost is composed from measured kernels:
# hardware: {model: Qwen/Qwen3-32B, gpu: h100}     # also tp, engine, precision, drafters

# Verification policies to compare; the first is the baseline of every gain.
policies: [mtp1, "fixed:3", dspark, dspark-async]

# What drafts are worth, as [DRAFTER=]MODEL. Empty: the profile's own. Classes may have their own.
acceptance: []

traffic:
  # poisson:12/s, gamma:12/s,cv=3 or diurnal:12/s,peak=2 (mean rate, peak over mean, once per 24h) ...
  arrivals: diurnal:120/s,peak=1.6
  # ... with classes of requests; or lengths alone. Rates and times need units.
  classes:
    chat: {lengths: azure-2023-conversation, share: 0.8}
    code: {lengths: "lognormal:2000,cv=1,max=16000/300,cv=1", share: 0.2}
  # Instead of all this, replay a recorded file (Mooncake, Azure, BurstGPT, CSV): trace.jsonl, trace.csv@2x
  # replay: trace.jsonl
  growth: ["0%", "25%", "50%", "100%"]

# All must hold. tps, ttft, itl, tpot, e2e with _mean or _p1.._p99.9; a class in front narrows it.
sla:
  - tps_mean>=80
  - tps_p10>=60
  - chat:ttft_p99<=2s

replica:
  # gpus: 1                 # the profile says what one replica is; give it where the profile does not
  concurrency: 256
  # KV-cache capacity: kv_tokens, or from memory and model; left out, it does not limit.
  # kv_memory: {gpu_memory_gib: 80, weights_gib: 40, layers: 43, latent_dim: 576, bytes_per_value: 1}
  # Where prompts are prefilled: elsewhere (a pool of workers of its own, sized and paid for beside the decode
  # replicas), chunked (in decode steps) or whole (between them).
  prefill: elsewhere
  # Prompt tokens per second of one worker. Without it no cost is stated. A measured profile knows it; this
  # one does not. ASSUMED here: 52,300 per node of 8 H100 for DeepSeek-V3 (SGLang, lmsys.org, 2025-05-05),
  # about 6,500 per GPU. V4-Flash activates fewer parameters and is probably faster: measure yours.
  prefill_tokens_per_s: 6500
  # prefill_gpus: 1         # GPUs of one worker; left out, as many as a replica has

fleet:
  router: round-robin        # or least-loaded, power-of-two, prefix-aware
  headroom: 20%              # room beyond the peak

price: {gpu_hour: 2.0, currency: USD}

# What steps take beyond the profile, where you have measured it:
# steps: {slow_path: "2=6.6%,189=21.6%", row_cost: 4us}

search:
  precision: 2%              # of the highest sustainable rate
  requests: 2000             # per trial; more narrows the intervals
  seed: 0
"""
