"""`python -m retrieval_service`."""

from __future__ import annotations

from infra.runtime.main import run_tier
from retrieval_service.settings import RetrievalSettings


def serve(settings: RetrievalSettings) -> None:
    """Serve until a stop signal."""
    # Imported late: torch takes seconds to import, and --help and wrong settings should be answered at once.
    from retrieval_service.app import serve_retrieval

    serve_retrieval(settings)


if __name__ == "__main__":
    run_tier(serve, RetrievalSettings)
