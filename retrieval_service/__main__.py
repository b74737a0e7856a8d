"""`python -m retrieval_service`."""

from __future__ import annotations

from infra.runtime.main import run_tier
from retrieval_service.settings import RetrievalSettings


def serve(settings: RetrievalSettings) -> None:
    """Serve until a stop signal."""
    from retrieval_service.assembly import serve_retrieval  # late: --help and wrong settings should show at once

    serve_retrieval(settings)


if __name__ == "__main__":
    run_tier(serve, RetrievalSettings)
