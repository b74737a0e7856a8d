"""The generation service: a base model that applies a composition of LoRA adapters to each request."""
