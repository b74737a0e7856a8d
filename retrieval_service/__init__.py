"""Retrieval service: embeds prompts and finds the adapters whose training data resembles them."""
