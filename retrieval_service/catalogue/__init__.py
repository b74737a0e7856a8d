"""The catalogue of adapters: stored in Qdrant, searched in memory."""
