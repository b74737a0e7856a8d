"""Fusion of several weighted adapters into one adapter, before decoding."""
