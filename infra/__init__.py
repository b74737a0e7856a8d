"""What all tiers share: the contract, the runtime of servers and clients, and tools."""
