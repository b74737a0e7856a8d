"""Measures retrieval on examples whose adapter is known."""
