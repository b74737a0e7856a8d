"""The runtime of servers and clients: gRPC, errors, settings, logs and metrics."""
