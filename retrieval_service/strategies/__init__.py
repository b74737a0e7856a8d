"""Strategies: how a vector is compared with adapters. Pure functions of their examples, in numpy."""
