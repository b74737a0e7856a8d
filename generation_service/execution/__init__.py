"""Forward passes on the device: runner, KV cache, sampler and CUDA graphs with static inputs."""
