"""Commands whose options are dataclasses: flat parameters for typer, and errors that name the option at fault."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from infra.contract.errors import InvalidArgumentError

Command = Callable[..., None]


class Sets:
    """Annotation of an option: the contract's fields that it sets, where their names differ from the option's.

    A name may be qualified, such as "retrieval.temperature".
    """

    def __init__(self, *fields: str) -> None:
        self.fields = fields


def with_options(command: Command) -> Command:
    """Return `command` for typer: each parameter annotated with a dataclass becomes the parameters that are its fields.

    The fields are declared like parameters of a command, `top_k: Annotated[int | None, typer.Option(...)] = None`. An
    InvalidArgumentError raised by the command names the option that sets the field at fault.
    """
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            parameters += _parameters_of(parameter.annotation)
        else:
            parameters.append(parameter)
    options = option_names(parameters)

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        with names_options(options):
            arguments = {
                name: group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
                for name, group in groups.items()
            }
            command(**arguments, **values)

    del flat.__wrapped__  # typer would read the signature of the wrapped command.
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def option_names(parameters: list[inspect.Parameter]) -> Mapping[str, str]:
    """Return the option or argument that sets each field, by the field's name: {"max_episodes": "--num-samples"}."""
    names: dict[str, str] = {}
    for parameter in parameters:
        if get_origin(parameter.annotation) is not Annotated:
            continue
        for annotation in get_args(parameter.annotation)[1:]:
            if isinstance(annotation, ArgumentInfo):
                names[parameter.name] = option = parameter.name
            elif isinstance(annotation, OptionInfo):
                names[parameter.name] = option = _spelling(parameter.name, annotation)
            elif isinstance(annotation, Sets):
                names |= dict.fromkeys(annotation.fields, option)
    return names


@contextmanager
def names_options(options: Mapping[str, str]) -> Iterator[None]:
    """Replace the field of an InvalidArgumentError raised within by the option that sets it, if there is one."""
    try:
        yield
    except InvalidArgumentError as error:
        option = _option_of(error.field, options)
        if option is None:
            raise
        raise error.renamed(option) from error


def _parameters_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default_of(field), annotation=hints[field.name]
        )
        for field in dataclasses.fields(group)
    ]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _spelling(name: str, info: OptionInfo) -> str:
    """Return how an option is spelled. In an annotation, typer keeps its first name as `default`."""
    declared = [info.default, *(info.param_decls or ())]
    spelled = [text for text in declared if isinstance(text, str) and text.startswith("--")]
    return spelled[0] if spelled else "--" + name.replace("_", "-")


def _option_of(path: str, options: Mapping[str, str]) -> str | None:
    """Return the option of a field path such as "spec.datasets[0].adapter_id": the longest ending that has one."""
    names = re.sub(r"\[\d+\]", "", path).split(".")
    endings = (".".join(names[start:]) for start in range(len(names)))
    return next((options[ending] for ending in endings if ending in options), None)
