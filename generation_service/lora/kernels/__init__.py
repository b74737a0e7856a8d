"""The arithmetic of weighted adapters: slow truth beside each fast path."""
