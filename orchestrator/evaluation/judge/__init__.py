"""A language model as judge of answers."""
