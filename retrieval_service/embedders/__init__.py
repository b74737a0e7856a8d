"""Embedders: prompts to vectors, batched across concurrent calls."""
