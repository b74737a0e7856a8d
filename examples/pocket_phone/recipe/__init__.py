"""How the checkpoints are made: tokenizer, base model, adapters, embedder, measurements and the model card."""
