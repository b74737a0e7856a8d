"""Settings of the orchestrator and its workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError
from infra.runtime.settings import load_settings
from orchestrator.settings import OrchestratorSettings


def test_dataset_roots_are_comma_separated() -> None:
    settings = load_settings(OrchestratorSettings, ["--dataset-roots", "a,b/c"])
    assert settings.dataset_roots == (Path("a"), Path("b/c"))


def test_shard_time_limit_below_patience_of_a_sample_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shard_time_limit_s must be at least .* \(600\)"):
        load_settings(OrchestratorSettings, ["--shard-time-limit-s", "599"])


def test_redis_url_of_another_scheme_is_refused_with_valid_ones() -> None:
    with pytest.raises(ConfigurationError, match="redis://, rediss://"):
        load_settings(OrchestratorSettings, ["--redis-url", "http://localhost"])


def test_output_dir_of_unknown_protocol_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--output-dir .*: foo://x: 'foo' is not a known kind of storage"):
        load_settings(OrchestratorSettings, ["--output-dir", "foo://x"])


def test_channels_use_service_token_and_message_limit() -> None:
    settings = load_settings(OrchestratorSettings, ["--service-token", "secret", "--max-message-bytes", "8192"])
    options = settings.channel("generation:50052")
    assert (options.target, options.token, options.max_message_bytes) == ("generation:50052", "secret", 8192)


def test_gateway_listens_by_default_and_is_turned_off_by_an_empty_address() -> None:
    assert load_settings(OrchestratorSettings, []).gateway.address == "127.0.0.1:50080"
    settings = load_settings(OrchestratorSettings, ["--gateway-address=", "--gateway-image-hosts", "a.example,b:8080"])
    assert (settings.gateway.address, settings.gateway.image_hosts) == ("", ("a.example", "b:8080"))


def test_worker_without_redis_url_names_the_option() -> None:
    worker = subprocess.run(
        [sys.executable, "-m", "orchestrator.jobs.worker"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert worker.returncode == 2
    assert "--redis-url" in worker.stderr
    assert "Traceback" not in worker.stderr
