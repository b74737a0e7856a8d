"""All tiers on this machine, and the demo."""
