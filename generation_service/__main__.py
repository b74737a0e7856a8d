"""`python -m generation_service`: load the base model, then serve."""

from __future__ import annotations

from generation_service.models.folder import read_config
from generation_service.models.quantised.gguf_file import gguf_path
from generation_service.settings import GenerationSettings
from infra.runtime.main import run_tier


def serve(settings: GenerationSettings) -> None:
    """Serve until a stop signal."""
    # Before the model is loaded, which takes seconds: a wrong path should fail at once.
    if gguf_path(settings.model_path) is None:
        read_config(settings.model_path)
    from generation_service.app import serve_forever

    serve_forever(settings)


if __name__ == "__main__":
    run_tier(serve, GenerationSettings)
