"""The catalogue of adapters: stored in Qdrant, searched in memory while it fits there."""
