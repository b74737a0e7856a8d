"""The training recipe of the adapters: batches, training, measurements, model cards."""
