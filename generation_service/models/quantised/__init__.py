"""Base models stored in fewer bits: GGUF files and float8 checkpoints, dequantised while they are loaded."""
