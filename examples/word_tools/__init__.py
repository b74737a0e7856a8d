"""Word tools: fourteen small text tasks in four families, with a LoRA adapter of SmolLM2-135M-Instruct for each."""

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SEED = 11
