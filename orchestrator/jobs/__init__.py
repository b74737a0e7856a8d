"""Evaluation jobs: the service, the ledger in Redis, Celery, the reconciler and the workers."""
