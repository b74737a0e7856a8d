"""Examples that ship with the repository."""
