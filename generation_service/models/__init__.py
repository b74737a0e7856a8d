"""The base models that can be served: one file per family, listed in `registry`."""
