"""Settings of the orchestrator and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from infra.contract.errors import ConfigurationError
from infra.runtime.channel import ChannelOptions
from infra.runtime.setting_groups import SettingsGroup
from infra.runtime.settings import ServerOptions, TierSettings
from orchestrator.evaluation.data.files import MAX_DATASET_BYTES
from orchestrator.evaluation.sample_plan import DEFAULT_MAX_SAMPLES
from orchestrator.evaluation.spec import MAX_SHARD_SIZE
from orchestrator.evaluation.storage import check_uri

_REDIS_SCHEMES = ("redis://", "rediss://", "redis+socket://")


class GatewayOptions(SettingsGroup):
    """The OpenAI-compatible HTTP gateway. It has the TLS files, the token and the grace period of the gRPC server."""

    prefix: ClassVar[str] = "gateway_"

    address: str = Field("127.0.0.1:50080", description="host:port of the HTTP gateway; empty is off")
    image_hosts: tuple[str, ...] = Field(
        (), description="hosts, as name or name:port, whose image URLs in requests are fetched; empty is none"
    )
    max_body_bytes: int = Field(64 * 2**20, ge=4096, description="largest body of an HTTP request, in bytes")


class OrchestratorSettings(TierSettings):
    """Settings of the orchestrator (loraretriever serve orchestrator) and of its workers (loraretriever worker)."""

    model_config = SettingsConfigDict(env_prefix="LORARETRIEVER_ORCHESTRATOR_")

    server: ServerOptions = ServerOptions(address="127.0.0.1:50053")
    gateway: GatewayOptions = GatewayOptions()
    answer_timeout_s: float = Field(300, gt=0, description="longest time of an answer, in seconds")

    # The services that it calls
    retrieval_target: str = Field("127.0.0.1:50051", description="host:port of the retrieval service")
    generation_target: str = Field("127.0.0.1:50052", description="host:port of the generation service")
    service_token: SecretStr | None = Field(None, min_length=1, description="bearer token for both services")
    service_tls_ca: Path | None = Field(None, description="PEM file of the CA of both services; turns TLS on")
    service_tls_certificate: Path | None = Field(None, description="PEM file of our certificate for both (mTLS)")
    service_tls_key: Path | None = Field(None, description="PEM file of its private key")

    # Evaluation jobs: where their data is, and how large they may be
    redis_url: str = Field(
        "", description="Redis of evaluation jobs, such as redis://host:6379/0; empty starts one inside the server"
    )
    redis_dir: Path = Field(Path(".loraretriever/redis"), description="folder of the Redis inside the server")
    dataset_roots: tuple[Path, ...] = Field((Path(),), description="folders below which datasets and images are read")
    output_dir: str = Field(
        ".loraretriever/evaluations", description="folder or fsspec URI for records and reports, a folder per job"
    )
    shard_size: int = Field(40, ge=1, le=MAX_SHARD_SIZE, description="samples per shard, unless the job sets it")
    max_samples: int = Field(DEFAULT_MAX_SAMPLES, ge=1, description="most samples of a job")
    max_dataset_bytes: int = Field(MAX_DATASET_BYTES, ge=1, description="most bytes of all JSONL files of a job")

    # Workers: how much they do at a time, and for how long they try
    worker_shards: int = Field(2, ge=1, description="shards that one worker runs at the same time")
    concurrency: int = Field(8, ge=1, description="samples of one shard that are answered at the same time")
    sample_timeout_s: float = Field(300, gt=0, description="longest time of one try to answer a sample, in seconds")
    sample_attempts: int = Field(3, ge=1, description="workers that may die of a sample before it is given up")
    patience_s: float = Field(
        300, ge=0, description="seconds for which a sample is tried again while a service is full or unreachable"
    )
    shard_time_limit_s: float = Field(
        900, gt=0, description="seconds after which a worker releases an unfinished shard"
    )
    report_patience_s: float = Field(
        86_400, ge=0, description="seconds for which a report that cannot be stored is tried again"
    )

    # The ledger and the queue: leases, wake-ups, expiry
    shard_lease_s: float = Field(20, gt=0, description="seconds after which a silent worker loses its shard")
    shard_resend_s: float = Field(
        5, gt=0, description="seconds after which workers are woken for shards that none has claimed"
    )
    reconcile_interval_s: float = Field(1, gt=0, description="seconds between searches for unclaimed shards")
    visibility_timeout_s: int = Field(
        1800, ge=1, description="seconds after which Redis offers an unacknowledged message again"
    )
    record_ttl_s: int = Field(
        86_400, ge=1, description="seconds that records and request ids stay in Redis once a report is stored"
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        if value and not value.startswith(_REDIS_SCHEMES):
            raise ValueError(f"must begin with one of {', '.join(_REDIS_SCHEMES)}")
        return value

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, value: str) -> str:
        try:
            check_uri(value)
        except ConfigurationError as error:
            raise ValueError(error.message) from error
        return value

    @model_validator(mode="after")
    def _check_sample_ends_before_its_shard_is_released(self) -> OrchestratorSettings:
        longest_s = self.patience_s + self.sample_timeout_s
        if self.shard_time_limit_s < longest_s:
            raise ValueError(
                f"shard_time_limit_s must be at least patience_s + sample_timeout_s ({longest_s:g}), "
                "or a sample that waits for a service is released again and again"
            )
        return self

    def channel(self, target: str) -> ChannelOptions:
        """Return the channel options of one of the two services."""
        return ChannelOptions(
            target,
            tls_ca=self.service_tls_ca,
            tls_certificate=self.service_tls_certificate,
            tls_key=self.service_tls_key,
            token=self.service_token.get_secret_value() if self.service_token is not None else None,
            max_message_bytes=self.server.max_message_bytes,
        )
