"""Adapters: their checkpoints, the host cache, admission, and residency in the adapter bank."""
