"""The flags and environment variables of the published study's scripts: what each is here.

Every flag of `infer_lora_retriever.py`, `evaluate_all.py`, their shell scripts and the scorers is either an option of
`loraretriever study` (KEPT) or is answered by the sentence that replaces it (REPLACED), in every command.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Images of one prompt that the study's scripts kept when MAX_NUM was not set.
STUDY_MAX_IMAGES = 12

#: Samples that the study's scripts answered with --debug.
STUDY_DEBUG_SAMPLES = 5

KEPT = (
    "--test-data", "--top-k", "--merge-method", "--lora-type", "--composition-weight-mode", "--combination-type",
    "--max-new-tokens", "--temperature", "--seed", "--debug", "--num-samples", "--show-similarities", "--gpu-id",
    "--evaluate-only", "--threshold",
)  # fmt: skip

_MODEL = "the base model is that of the running stack: 'loraretriever up --model-path FOLDER'"
_CONFIG = "register the file once: 'loraretriever adapters import FILE'"
_SCORE = "'loraretriever evaluate score FILE' scores results without a model"
_OUTPUT = "the orchestrator names the folder and prints it: set it with 'loraretriever up --work-dir DIR'"

REPLACED: Mapping[str, str] = MappingProxyType(
    {
        "--model-type": _MODEL,
        "--model": _MODEL,
        "--model-path": _MODEL,
        "--app-config": _CONFIG,
        "--category-config": _CONFIG,
        "--jina-model": "the embedder is that of the running stack: 'loraretriever up --embedder-path FOLDER'",
        "--output-dir": _OUTPUT,
        "--output-base": _OUTPUT,
        "--skip-inference": _SCORE,
        "--inference-result": _SCORE,
        "--data-path": _SCORE,
        "--results-path": _SCORE,
        "--dialog-mode": "step and episode are values of 'loraretriever evaluate run --protocol'",
        "--test-input": "give the file: 'loraretriever study --test_data FOLDER/APP_train.jsonl'",
        "--data-root": "give the files: 'loraretriever study --test_data FOLDER/APP_train.jsonl'",
        "--batch": "give the folder, one dataset a file: 'loraretriever study --test_data FOLDER/'",
        "--app-only": "'loraretriever study --test_data FOLDER/ --lora_type app' runs the apps' files",
        "--category-only": "'loraretriever study --test_data FOLDER/ --lora_type category' runs the categories' files",
        "--dry-run": "nothing is run before a job is checked; '--num_samples 1' tries a command on one sample",
        "--composition-weight-mode": "'--weighting uniform', or '--weighting softmax --weighting-temperature 0.2'",
        "--combination-type": "'--strategy fusion-linear', '-svd' or '-concat' (the study's cat)",
    }
)
"""The answer to a flag in a command that does not have it; every command named in it exists."""

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "JINA_MAX_PIXELS": "set LORARETRIEVER_RETRIEVAL_MAX_IMAGE_PIXELS where the retrieval service runs",
        "JINA_IMAGE_BATCH_SIZE": "the retrieval service forms its own batches",
        "TRITON_PTXAS_PATH": "the generation service finds Triton's compiler itself",
    }
)
