"""Answer one prompt: retrieve, compose, generate."""
