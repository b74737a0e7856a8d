"""Errors in the words of the command line: options instead of the contract's fields, commands instead of its calls."""

from __future__ import annotations

import re
from collections.abc import Mapping

from infra.contract.errors import InvalidArgumentError, LoraRetrieverError

OPTIONS: Mapping[str, str] = {
    "adapter": "--adapter",
    "adapter_field": "--adapter-field",
    "adapter_id": "--adapter",
    "adapter_map": "--adapter-map",
    "exclude_own_adapter": "--strategy",
    "fail_on": "--fail-on",
    "fail_under": "--fail-under",
    "image_root": "--image-root",
    "job": "--job",
    "judge": "--judge",
    "judge_model": "--judge-model",
    "judge_prompt": "--judge-prompt",
    "judge_rate": "--judge-rate",
    "legacy_threshold": "--threshold",
    "max_episodes": "--num-samples",
    "max_failed": "--max-failed",
    "max_new_tokens": "--max-new-tokens",
    "metric": "--metric",
    "min_similarity": "--min-similarity",
    "output": "--output",
    "point_tolerance": "--point-tolerance",
    "point_tolerance_px": "--point-tolerance",
    "seed": "--seed",
    "shard_size": "--shard-size",
    "strategies": "--strategy",
    "strategy": "--strategy",
    "threshold": "--threshold",
    "top_k": "--top-k",
    "top_p": "--top-p",
}
"""The option that says what the last name of a field's path says."""

COMMANDS: Mapping[str, str] = {
    "ListEvaluations": "'loraretriever evaluate list'",
    "WatchEvaluation": "'loraretriever evaluate watch'",
    "RetryEvaluation": "'loraretriever evaluate retry'",
    "(adapter_id, or adapter_field where rows differ)": "(--adapter, or --adapter-field where rows differ)",
}
DATASET_ROOTS = "dataset roots"
ROOTS_HINT = "'loraretriever up --dataset-roots DIR' says below which folders datasets may lie"
_LAST_NAME = re.compile(r"(?:.*\.)?(\w+)")


def worded(error: LoraRetrieverError) -> str:
    """Return an error's message as a user of the command line should read it."""
    message = _with_option(error) if isinstance(error, InvalidArgumentError) else error.message
    for said, command in COMMANDS.items():
        message = message.replace(said, command)
    return f"{message}; {ROOTS_HINT}" if DATASET_ROOTS in message else message


def _with_option(error: InvalidArgumentError) -> str:
    name = _LAST_NAME.fullmatch(error.field)
    option = OPTIONS.get(name[1]) if name is not None else None
    return f"{option}: {error.description}" if option else error.message
