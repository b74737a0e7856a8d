"""Text-only language models: one family over the classes of transformers, one row of a table for each architecture."""
