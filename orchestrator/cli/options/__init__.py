"""Options of commands as values: a frozen dataclass per concern, shared by every command that takes them."""
