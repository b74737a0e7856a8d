"""What it may cost to read the datasets of a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.data.files import MAX_DATASET_BYTES, check_bytes

MAX_BAD_ROWS = 100_000
MAX_IMAGE_BYTES = 64 << 20
"""An image of more bytes fits no message to the services: its row is bad, and it is never read."""


class ReadBudget:
    """What the datasets of a job may cost together: `max_bytes` of files, and MAX_BAD_ROWS rows that are none."""

    def __init__(self, max_bytes: int = MAX_DATASET_BYTES) -> None:
        self._max_bytes = max_bytes
        self._byte_size = 0
        self._bad_rows = 0

    def lines(self, content: BinaryIO) -> Iterator[bytes]:
        """Yield the lines of a file. Raises InvalidArgumentError once too many bytes were read."""
        while line := content.readline(self._max_bytes - self._byte_size + 1):
            self._byte_size += len(line)
            check_bytes(self._byte_size, self._max_bytes)
            yield line

    def count_bad_row(self, where: str, problem: str) -> None:
        """Count a bad row. Raises InvalidArgumentError where there are so many that this is no dataset."""
        self._bad_rows += 1
        if self._bad_rows > MAX_BAD_ROWS:
            raise InvalidArgumentError(
                "datasets",
                f"more than {MAX_BAD_ROWS:,} rows cannot be read; are these JSONL files of episodes? "
                f"The last is {where}: {problem}",
            )
