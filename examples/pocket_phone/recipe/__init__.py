"""The training recipe of the checkpoints: tokenizer, base model, adapters, embedder, measurements, model card."""
