"""Everything that needs torch: targets, drafts, sampling, training, tracing, profiling, serving."""
