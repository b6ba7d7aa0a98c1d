"""The flags of `vae-train fit`, made from the fields of TrainConfig."""

import inspect
from collections.abc import Callable
from functools import wraps
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from training.config import Flag, TrainConfig, flags


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each field in place of its parameter `settings`, a dict of the values that
    were given."""

    @wraps(command)
    def run(context: typer.Context, **values: Any) -> None:
        settings = {name: values.pop(name) for name in flags()}
        sources = {name: context.get_parameter_source(name) for name in settings}
        given = {name: settings[name] for name, by in sources.items() if by and by.name != "DEFAULT"}
        command(settings=given, **values)

    own = inspect.signature(command).parameters
    made = [_parameter(name, flag) for name, flag in flags().items()]
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *made, *(each for name, each in own.items() if name != "settings")]
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # where typer looks
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _parameter(name: str, flag: Flag) -> inspect.Parameter:
    field = TrainConfig.model_fields[name]
    kind = str | None if flag.text else _merged(field.annotation)
    words = " ".join(filter(None, (flag.help, f"[default: {flag.default}]" if flag.default else "")))
    dashed = name.replace("_", "-")
    switch = [f"--{dashed}/--no-{dashed}"] if kind == bool | None else []
    option = typer.Option(*switch, help=words, metavar=flag.metavar)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option]
    )


def _merged(annotation: Any) -> Any:
    """A union of literals as one literal: typer knows no other."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    parts = get_args(annotation)
    literals = [each for each in parts if get_origin(each) is Literal]
    if not literals:
        return annotation
    rest = [each for each in parts if each not in literals and each is not NoneType]
    assert not rest, annotation
    merged: Any = Literal[tuple(choice for each in literals for choice in get_args(each))]
    return merged | None if NoneType in parts else merged
