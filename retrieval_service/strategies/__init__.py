"""Ways to compare a vector with adapters: pure functions of their examples, in numpy."""
