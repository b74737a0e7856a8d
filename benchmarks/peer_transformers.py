"""Worker: `generate` of transformers, PEFT's mixed batch over the same weights, and the logits that judge differences.

A batch is padded on the left to its longest prompt. A request with several weighted adapters runs alone, on an exact
merge of them (`cat`): it is the reference for such answers, not a competitor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peer_worker import ReplyStream, options

REPLIES = ReplyStream()  # Before the imports below, which may print.

from harness import DTYPES  # noqa: E402, I001 - It puts the repository on the path.
import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from random_models import copy_sharing_weights  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList  # noqa: E402

_MERGED = "merged"


def main() -> None:
    """Serve until stdin is closed."""
    chosen = options()
    torch.set_num_threads(chosen.threads)
    base: Any = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=DTYPES[chosen.dtype]).eval()
    base.generation_config = GenerationConfig()
    names = sorted(folder.name for folder in chosen.adapters.iterdir())
    with_adapters: Any = PeftModel.from_pretrained(
        copy_sharing_weights(base), chosen.adapters / names[0], adapter_name=names[0], autocast_adapter_dtype=False
    )
    for name in names[1:]:
        with_adapters.load_adapter(chosen.adapters / name, name, autocast_adapter_dtype=False)
    models = Models(base, with_adapters.eval(), names[0])
    REPLIES.serve(models.handle, "torch", "transformers", "peft")


class Models:
    """The base model, and the same weights with all adapters."""

    def __init__(self, base: Any, with_adapters: Any, any_adapter: str) -> None:
        self._base, self._with_adapters, self._any_adapter = base, with_adapters, any_adapter

    @torch.inference_mode()
    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """Answer requests, or compare the logits of two candidates for the next token."""
        if "candidates" in message:
            return {"gap": self._gap(message["tokens"], message["adapters"], message["candidates"])}
        requests, new_tokens = message["requests"], message["new_tokens"]
        if any(len(request["adapters"]) > 1 for request in requests):
            return self._one_by_one(requests, new_tokens)
        names = [next(iter(request["adapters"]), None) for request in requests]
        if any(names):
            extra = {"adapter_names": [name or "__base__" for name in names]}
            return generate(self._with_adapters, requests, new_tokens, extra)
        return generate(self._base, requests, new_tokens, {})

    def _one_by_one(self, requests: Sequence[Mapping[str, Any]], new_tokens: int) -> dict[str, Any]:
        replies = []
        for request in requests:
            with self._merged(request["adapters"]) as model:
                replies.append(generate(model, [request], new_tokens, {}))
        return {key: [reply[key][0] for reply in replies] for key in ("answers", "first_token_s")}

    def _gap(self, tokens: list[int], adapters: Mapping[str, float], candidates: list[int]) -> float:
        """Return the difference of the candidates' logits after `tokens`, relative to the largest logit."""
        with self._merged(adapters) as model:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False, logits_to_keep=1).logits[0, -1].double()
        return float((logits[candidates[0]] - logits[candidates[1]]).abs() / logits.abs().max())

    @contextmanager
    def _merged(self, adapters: Mapping[str, float]) -> Iterator[Any]:
        if not adapters:
            yield self._base
            return
        model = self._with_adapters
        with torch.inference_mode(False), torch.no_grad():
            model.add_weighted_adapter(list(adapters), list(adapters.values()), _MERGED, combination_type="cat")
        model.set_adapter(_MERGED)
        try:
            yield model
        finally:
            model.set_adapter(self._any_adapter)
            model.delete_adapter(_MERGED)


def generate(
    model: Any, requests: Sequence[Mapping[str, Any]], new_tokens: int, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Answer one padded batch."""
    longest = max(len(request["tokens"]) for request in requests)
    tokens = torch.zeros(len(requests), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, request in enumerate(requests):
        start = longest - len(request["tokens"])
        tokens[row, start:] = torch.tensor(request["tokens"])
        mask[row, start:] = 1
    first = FirstToken()
    output = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        generation_config=GenerationConfig(do_sample=False, max_new_tokens=new_tokens, pad_token_id=0),
        stopping_criteria=StoppingCriteriaList([first]),
        **extra,
    )
    answers: list[list[int]] = output[:, longest:].tolist()
    return {"answers": answers, "first_token_s": [first.after_s] * len(requests)}


class FirstToken(StoppingCriteria):  # type: ignore[misc]
    """Records the time to the first token; never stops a sequence."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.after_s = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Note the time of the first call, which follows the first token."""
        self.after_s = self.after_s or time.perf_counter() - self._started
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


if __name__ == "__main__":
    main()
