"""PEFT folders: configuration, tensors, and their binding to modules of the base model."""
