"""Settings of the generation service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from infra.runtime.images import ImageLimits
from infra.runtime.settings import ServerOptions, TierSettings


class GenerationSettings(TierSettings):
    """The generation service: answers prompts with a base model and a composition of adapters for each prompt."""

    model_config = SettingsConfigDict(env_prefix="LORARETRIEVER_GENERATION_")

    server: ServerOptions = ServerOptions(address="127.0.0.1:50052")
    model_path: Path = Field(description="folder of the base model, as downloaded")
    model_name: str = Field(
        "", description="name of the base model in adapter configs; empty: from its config.json, else the folder's name"
    )
    model_aliases: tuple[str, ...] = Field((), description="other names of the base model in adapter configs")
    device: str = Field("auto", description="torch device, such as cpu or cuda:0; auto: a GPU if available")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="dtype of weights, adapters and KV cache; auto: the checkpoint's on a GPU, float32 on a CPU"
    )
    max_running: int = Field(16, ge=1, description="requests that run at a time, each in a slot of the KV cache")
    max_waiting: int = Field(256, ge=1, description="requests that may wait before new ones get RESOURCE_EXHAUSTED")
    max_sequence_tokens: int | None = Field(
        None,
        ge=16,
        description="longest prompt and answer together, in tokens; unset: as much as model and memory allow",
    )
    default_max_new_tokens: int = Field(
        512, ge=1, description="longest answer of a request without max_new_tokens, in tokens"
    )
    prefill_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens prefilled in one step; unset: 1024 on a GPU, 256 on a CPU",
    )
    decode_graphs: bool = Field(True, description="replay captured decode steps (CUDA graphs) on a GPU")
    cpu_packed_weights: bool = Field(
        True, description="on a CPU in float32, keep a second copy of the weights in a layout that decodes faster"
    )
    bank_ranks: int = Field(512, ge=1, description="ranks in the adapter bank, shared by all resident adapters")
    max_adapters: int = Field(16, ge=1, description="adapters in one composition")
    adapter_roots: tuple[Path, ...] = Field((), description="folders below which adapter checkpoints may be read")
    host_adapter_bytes: int = Field(2**31, ge=0, description="adapter weights cached in host memory, in bytes")
    retrieval_target: str = Field(
        "", description="host:port of the catalogue that locates adapters; empty: <adapter root>/<adapter id>/"
    )
    retrieval_token: SecretStr | None = Field(None, description="bearer token for the catalogue")
    retrieval_tls_ca: Path | None = Field(
        None, description="PEM file of the CA that signed the catalogue's certificate"
    )
    retrieval_tls_certificate: Path | None = Field(
        None, description="PEM file of the client certificate for the catalogue (mTLS)"
    )
    retrieval_tls_key: Path | None = Field(None, description="PEM file of its private key")
    retrieval_timeout_s: float = Field(5, gt=0, description="longest wait for the catalogue, in seconds")
    max_pixels: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("LORARETRIEVER_GENERATION_MAX_PIXELS", "MAX_PIXELS"),
        description="most pixels of a resized image; unset: from the model's preprocessor_config.json",
    )
    max_tiles: int | None = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("LORARETRIEVER_GENERATION_MAX_TILES", "MAX_NUM"),
        description="most tiles that an image is cut into; unset: from the model's own files",
    )
    chat_template: Path | None = Field(
        None, description="file with the chat template to use instead of the one in the base model's folder"
    )
    image_suffix: str | None = Field(
        None, description="text after each image of an InternVL prompt; unset: as the model was published"
    )
    max_images: int = Field(16, ge=0, description="images in one prompt")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="bytes of one encoded image")
    max_image_pixels: int = Field(50_000_000, ge=1, description="pixels of one image before it is resized")

    @property
    def image_limits(self) -> ImageLimits:
        """The limits on images."""
        return ImageLimits(self.max_images, self.max_image_bytes, self.max_image_pixels)
