"""Tools for maintainers: generate stubs, build the wheel, measure the code."""
