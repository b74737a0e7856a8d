"""The family of text-only language models: one instance for each row of the table of architectures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from generation_service.models.base import InputFormat, LoadOptions, ModelArchitecture
from generation_service.models.causal.architectures import ARCHITECTURES, CausalArchitecture
from generation_service.models.causal.config import max_positions, read_causal_config
from generation_service.models.causal.model import CausalLM
from generation_service.models.causal.names import CausalNames
from generation_service.models.chat import ChatTokenizer
from generation_service.models.decoder import model_description
from generation_service.models.folder import eos_tokens
from generation_service.models.modules import architecture_of, build_without_weights, linear_layers, load_with_weights


@dataclass(frozen=True)
class CausalFamily:
    """Reads the checkpoints of one architecture. Every linear layer except the head can be adapted."""

    row: CausalArchitecture
    loaded: ClassVar[type[CausalLM]] = CausalLM

    @property
    def model_type(self) -> str:
        """The `model_type` in config.json."""
        return self.row.model_type

    def describe(self, folder: Path) -> ModelArchitecture:
        """Return the architecture in `folder`."""
        config = read_causal_config(folder, self.row)
        return self._architecture(build_without_weights(folder, self.row.model_class, config, self.row.title))

    def input_format(self, folder: Path, options: LoadOptions) -> InputFormat:
        """Return the tokenizer and chat template of `folder`."""
        chat = ChatTokenizer(folder, options.chat_template)
        return InputFormat(
            chat.name,
            len(chat),
            chat.largest_ordinary_token,
            chat.template_source,
            image_limits={},
            notes=chat.notes,
        )

    def load(self, folder: Path, options: LoadOptions) -> CausalLM:
        """Load `folder` into the classes of transformers. Raises CheckpointError unless every tensor binds."""
        config = read_causal_config(folder, self.row)
        chat = ChatTokenizer(folder, options.chat_template)
        # Fused attention kernels do not compute the soft cap; the eager ones of transformers do.
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
        model = load_with_weights(folder, self.row.model_class, config, options, self.row.title, attention=attention)
        architecture = self._architecture(model)
        description = model_description(
            self.model_type,
            model,
            architecture,
            options,
            token_characters=chat.longest_token,
            eos_tokens=eos_tokens(folder) | chat.end_tokens,
        )
        return self.loaded(model, description, self.row, chat)

    def _architecture(self, model: Any) -> ModelArchitecture:
        targets = linear_layers(model, "model.layers")
        shape = architecture_of(self.row.title, model, targets, by_image=(), canonical=CausalNames(targets).canonical)
        return replace(shape, max_positions=max_positions(model.config))


CAUSAL_FAMILIES = tuple(map(CausalFamily, ARCHITECTURES))
