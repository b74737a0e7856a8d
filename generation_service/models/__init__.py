"""The base models that can be served: one file a family, named in `registry`."""
