"""Messages of orchestrator_service.proto to the orchestrator's own types and back, for clients and server alike."""
