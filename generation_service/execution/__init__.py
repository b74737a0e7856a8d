"""Model execution: the runner, the KV cache, the sampler, and captured decode steps."""
