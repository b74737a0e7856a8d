"""Decode many requests together: scheduling, the step loop, limits and the ends of sequences."""
