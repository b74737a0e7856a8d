"""Examples that run against the services of this repository."""
