"""How well prompts find their adapters: measured on examples whose adapter is known."""
