"""Adapters on the device: weights, the bank, the layers that apply them, fusion and kernels."""
