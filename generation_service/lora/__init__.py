"""LoRA on the device: adapter weights, the bank that stores them, the layers that apply them, fusion and kernels."""
