"""Adapters: their files, their place on the device, and the layers that apply them."""
