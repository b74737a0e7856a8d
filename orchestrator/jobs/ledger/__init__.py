"""The ledger of evaluation jobs, in Redis."""
