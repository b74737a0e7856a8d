"""Strategies as they are written on the command line."""

from __future__ import annotations

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.strategies import parse_strategies


def test_strategies_are_named_as_reports_name_them() -> None:
    words = ["base,fusion-concat", "mixture-out-of-domain"]
    assert [strategy.label for strategy in parse_strategies(words)] == [
        "base",
        "fusion-concat",
        "mixture-out-of-domain",
    ]
    assert parse_strategies(["oracle"])[0].strategy is AnswerStrategy.ORACLE
    with pytest.raises(InvalidArgumentError, match="mixture-concat"):
        parse_strategies(["mixture-concat"])
