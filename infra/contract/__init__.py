"""What crosses the tiers, as plain dataclasses: the Python twin of proto/loraretriever/v1, free of gRPC and torch."""
