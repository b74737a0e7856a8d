"""Datasets: what a job calls its data, and what is in the files."""
