"""The engine: scheduling, the step loop, limits and the completion of sequences."""
