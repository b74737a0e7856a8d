"""Settings of the orchestrator: what is refused, and what a worker cannot do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.contract.errors import ConfigurationError
from infra.runtime.settings import load_settings
from orchestrator.settings import OrchestratorSettings


def test_dataset_roots_are_a_comma_separated_list() -> None:
    settings = load_settings(OrchestratorSettings, ["--dataset-roots", "a,b/c"])
    assert settings.dataset_roots == (Path("a"), Path("b/c"))


def test_a_shard_must_not_be_handed_on_before_a_sample_has_run_out_of_patience() -> None:
    with pytest.raises(ConfigurationError, match=r"shard_time_limit_s must be at least .* \(600\)"):
        load_settings(OrchestratorSettings, ["--shard-time-limit-s", "599"])


def test_redis_url_of_another_kind_is_refused_with_those_that_are_right() -> None:
    with pytest.raises(ConfigurationError, match="redis://, rediss://"):
        load_settings(OrchestratorSettings, ["--redis-url", "http://localhost"])


def test_output_that_can_never_be_written_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"--output-dir .*: foo://x: 'foo' is not a known kind of storage"):
        load_settings(OrchestratorSettings, ["--output-dir", "foo://x"])


def test_services_are_called_with_their_token_and_the_message_limit_of_the_tier() -> None:
    settings = load_settings(OrchestratorSettings, ["--service-token", "secret", "--max-message-bytes", "8192"])
    options = settings.channel("generation:50052")
    assert (options.target, options.token, options.max_message_bytes) == ("generation:50052", "secret", 8192)


def test_worker_without_redis_says_what_it_needs() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.jobs.worker"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "--redis-url" in ended.stderr
    assert "Traceback" not in ended.stderr
