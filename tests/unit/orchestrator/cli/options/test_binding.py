"""Options as dataclasses: flat parameters, and errors that name the option at fault."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.cli.options.binding import Sets, with_options


@dataclass(frozen=True)
class Base:
    size: Annotated[int, typer.Option("--num-samples", "--size"), Sets("max_episodes")] = 1


@dataclass(frozen=True)
class Sampling(Base):
    heat: Annotated[float, typer.Option(), Sets("retrieval.temperature")] = 0.0
    temperature: Annotated[float, typer.Option()] = 0.0


def test_fields_of_dataclasses_become_parameters_in_order() -> None:
    @with_options
    def command(*, name: Annotated[str, typer.Argument()], sampling: Sampling, as_json: bool = False) -> None: ...

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["name", "size", "heat", "temperature", "as_json"]
    assert parameters["size"].default == 1
    assert parameters["name"].default is inspect.Parameter.empty


def test_command_receives_values_as_dataclass() -> None:
    received: list[Sampling] = []

    @with_options
    def command(*, sampling: Sampling) -> None:
        received.append(sampling)

    command(size=3, heat=0.5, temperature=1.0)
    assert received == [Sampling(3, 0.5, 1.0)]


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("spec.max_episodes", "--num-samples"),
        ("retrieval.temperature", "--heat"),
        ("spec.retrieval.temperature", "--heat"),
        ("decoding.temperature", "--temperature"),
        ("datasets[0].size", "--num-samples"),
        ("prompt.messages[0]", "prompt.messages[0]"),
    ],
)
def test_error_names_option_that_sets_its_field(path: str, option: str) -> None:
    @with_options
    def command(*, sampling: Sampling) -> None:
        raise InvalidArgumentError(path, "is wrong", limit="3")

    with pytest.raises(InvalidArgumentError) as raised:
        command(size=1, heat=0.0, temperature=0.0)
    assert (raised.value.field, raised.value.description, raised.value.metadata) == (option, "is wrong", {"limit": "3"})


def test_error_names_argument_and_keeps_notes() -> None:
    @with_options
    def command(*, text: Annotated[str, typer.Argument(), Sets("parts")], sampling: Sampling) -> None:
        error = InvalidArgumentError("parts", "is empty")
        error.add_note("request id 7")
        raise error

    with pytest.raises(InvalidArgumentError) as raised:
        command(text="", size=1, heat=0.0, temperature=0.0)
    assert raised.value.message == "text: is empty"
    assert raised.value.__notes__ == ["request id 7"]


def test_other_errors_pass_unchanged() -> None:
    error = NotFoundError("none")

    @with_options
    def command(*, sampling: Sampling) -> None:
        raise error

    with pytest.raises(NotFoundError) as raised:
        command(size=1, heat=0.0, temperature=0.0)
    assert raised.value is error
