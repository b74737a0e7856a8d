"""Settings of the retrieval service, grouped by concern. Flags and environment variables are flat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from infra.contract.retrieval import RetrievalStrategy, Weighting
from infra.runtime.setting_groups import SettingName, SettingsGroup
from infra.runtime.settings import ServerOptions, TierSettings


class EmbedderSettings(SettingsGroup):
    """The embedding model, and how it reads texts and images."""

    kind: Annotated[Literal["auto", "jina-v4", "http", "sentence-transformers"], SettingName("embedder")] = Field(
        "auto",
        description="what embeds prompts: a jina-embeddings-v4 folder (text and images), an OpenAI-compatible endpoint "
        "(text), or a sentence-transformers folder (text); auto is http with --embedder-url, else detected from the "
        "folder",
    )
    path: Annotated[Path | None, SettingName("embedder_path")] = Field(
        None, description="folder of the model, in the layout of the hub; required unless the embedder is http"
    )
    task: Annotated[Literal["retrieval", "text-matching", "code"], SettingName("embedder_task")] = Field(
        "retrieval", description="task whose adapter the embedder applies"
    )
    text_prefix: Literal["query", "passage"] = Field(
        "query", description="prefix of texts, for requests and training examples alike"
    )
    text_prompt: str | None = Field(
        None,
        description="words put before every text; for http, and for sentence-transformers instead of the folder's own",
    )
    text_weight: float = Field(0.7, ge=0, description="weight of a prompt's text in its vector")
    image_weight: float = Field(0.3, ge=0, description="weight of the mean of a prompt's images in its vector")
    max_query_images: int = Field(2, ge=0, description="images of a prompt that are embedded, starting with the first")
    max_image_pixels: int = Field(100_000, ge=784, description="pixels of an image after resizing for the embedder")
    max_text_tokens: int = Field(8192, ge=8, description="tokens of a text that are embedded, starting with the first")
    truncate_dim: int | None = Field(
        None,
        ge=1,
        description="dimensions of a vector: one of jina-v4's matryoshka_dims, what the endpoint is asked for, or "
        "where sentence-transformers vectors are cut; unset is all",
    )
    device: str = Field("auto", description="where the embedder runs: auto, cpu, cuda, cuda:1")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the embedder; auto is float32 on the CPU, bfloat16 elsewhere"
    )
    torch_threads: int | None = Field(None, ge=1, description="CPU threads of a forward pass; unset is torch's choice")


class EndpointSettings(SettingsGroup):
    """The embeddings endpoint of an http embedder."""

    prefix: ClassVar[str] = "embedder_"

    url: str = Field("", description="base URL of the embeddings endpoint, such as http://127.0.0.1:8000/v1")
    model: str = Field("", description="model that the endpoint embeds with")
    api_key: SecretStr | None = Field(
        None, min_length=1, description="key of the endpoint; better given by the environment"
    )
    timeout_s: float = Field(30, gt=0, description="seconds that one request to the endpoint may take")
    retries: int = Field(4, ge=0, le=20, description="retries after 429, 5xx or no response")
    wait_s: float = Field(60, ge=0, description="seconds to wait for the endpoint at start")
    parallel: int = Field(4, ge=1, le=64, description="concurrent requests to the endpoint")
    encoding: Literal["float", "base64"] = Field(
        "float", description="encoding of vectors that is requested; either is understood"
    )
    images: bool = Field(
        False,
        description='the endpoint accepts images, as {"image": base64} among the inputs; else only texts are embedded',
    )


class BatchingOptions(SettingsGroup):
    """How concurrent calls share forward passes of the embedder."""

    batch_size: int = Field(16, ge=1, description="texts or images in one forward pass, or one request to the endpoint")
    batch_tokens: int = Field(
        16_384, ge=1, description="tokens of one forward pass of jina-v4, with padding; longer inputs go alone"
    )
    # Waits of 0, 5 and 20 ms gave no clear order in calls per second; at 5 ms most passes of 16 callers are full
    # (lab log, 2026-11-22).
    max_wait_s: Annotated[float, SettingName("batch_wait_s")] = Field(
        0.005, ge=0, le=1, description="seconds that a forward pass may wait for callers that are about to join it"
    )
    max_queue: int = Field(
        1024, ge=1, description="texts and images that may wait to be embedded before calls get RESOURCE_EXHAUSTED"
    )
    cache_bytes: int = Field(
        256 * 2**20, ge=0, description="memory for the vectors of texts and images seen before; 0 disables the cache"
    )


class QdrantSettings(SettingsGroup):
    """Where the catalogue is stored."""

    prefix: ClassVar[str] = "qdrant_"

    path: Path = Field(
        Path(".loraretriever/qdrant"), description="folder of the catalogue, used by one process at a time"
    )
    url: str = Field("", description="Qdrant server such as http://qdrant:6333, instead of the folder")
    api_key: SecretStr | None = Field(None, description="key of the Qdrant server")
    tls_ca: Path | None = Field(None, description="PEM file of the CA of an https Qdrant server's certificate")
    timeout_s: int = Field(10, ge=1, description="seconds that Qdrant may take to respond")
    wait_s: float = Field(60, ge=0, description="seconds to wait for the Qdrant server at start")


class CatalogueSettings(SettingsGroup):
    """What the catalogue holds and how it is read."""

    collection: str = Field("adapters", min_length=1, description="name of the catalogue in Qdrant")
    memory_vectors: int = Field(
        50_000, ge=0, description="example vectors up to which the catalogue is searched in memory, by any strategy"
    )
    keep_examples: bool = Field(
        True,
        description="store the examples that adapters are registered with, so that another embedder can embed them",
    )
    stale_reads: bool = Field(
        False, description="answer from the last known catalogue, marked as stale, while Qdrant cannot be reached"
    )


class RetrievalDefaults(SettingsGroup):
    """Values for requests that leave an option unset, and the limit on top_k."""

    strategy: RetrievalStrategy = Field(
        RetrievalStrategy.CENTROID, description="how adapters are compared if a request does not set it"
    )
    top_k: int = Field(3, ge=1, description="adapters retrieved if a request does not set it")
    max_top_k: int = Field(64, ge=1, description="adapters that a request may ask for")
    weighting: Weighting = Field(Weighting.SOFTMAX, description="weighting if a request does not set it")
    temperature: float = Field(
        0.05, gt=0, description="temperature of softmax weights if a request does not set it; the study used 0.2"
    )
    min_similarity: float = Field(
        -1, ge=-1, le=1, description="least cosine similarity of a match if a request does not set it; -1 keeps all"
    )
    min_log_odds: float | None = Field(
        None,
        allow_inf_nan=False,
        description="least log-odds that any adapter fits, if a request does not set it; only two_covariance tells",
    )


class LimitSettings(SettingsGroup):
    """Limits on what one request may contain."""

    max_prompts: int = Field(256, ge=1, description="prompts in one request")
    max_examples: int = Field(256, ge=1, le=512, description="training examples of one adapter")
    max_images: int = Field(16, ge=0, description="images in one prompt")
    max_image_bytes: int = Field(20 * 2**20, ge=1, description="bytes of one encoded image")
    max_decoded_pixels: int = Field(50_000_000, ge=1, description="pixels of one image as sent")


class RetrievalSettings(TierSettings):
    """Retrieval service: embeds prompts, finds the adapters that fit them, and stores the catalogue of adapters."""

    model_config = SettingsConfigDict(env_prefix="LORARETRIEVER_RETRIEVAL_")

    server: ServerOptions = ServerOptions(address="127.0.0.1:50051")
    workers: int = Field(16, ge=1, le=256, description="calls that run at once; others wait in a queue")
    embedder: EmbedderSettings = EmbedderSettings()
    endpoint: EndpointSettings = EndpointSettings()
    batching: BatchingOptions = BatchingOptions()
    qdrant: QdrantSettings = QdrantSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    defaults: RetrievalDefaults = RetrievalDefaults()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _check_embedder(self) -> RetrievalSettings:
        if self.embedder.kind == "http" or (self.embedder.kind == "auto" and self.endpoint.url):
            if not self.endpoint.url or not self.endpoint.model:
                raise ValueError("an http embedder needs --embedder-url and --embedder-model")
            if self.embedder.kind == "auto" and self.embedder.path is not None:
                raise ValueError("--embedder-path and --embedder-url are both given; choose with --embedder")
        elif self.embedder.path is None:
            raise ValueError(
                "--embedder-path is missing; name the folder of a model, or an endpoint with --embedder-url"
            )
        return self
