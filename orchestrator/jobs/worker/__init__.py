"""A worker's part of an evaluation job."""
