"""The arithmetic of weighted adapters: a slow reference and the fast paths that are compared with it."""
