"""Compositions: which ranks of the bank a step applies, and several adapters fused into one."""
