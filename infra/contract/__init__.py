"""Data that crosses the tiers, as plain dataclasses: the twin of proto/loraretriever/v1, without gRPC or torch."""
