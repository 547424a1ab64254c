"""`madakv serve`: a vLLM server that evicts."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from madakv.cli.errors import one_line_errors

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, a folder, or one of `madakv models`.")]
BudgetOption = Annotated[float, typer.Option(metavar="SHARE", help="Share of each prompt that stays, in (0, 1].")]
MethodOption = Annotated[str, typer.Option(metavar="NAME", help="How it is chosen, such as madakv or snapkv.")]


def serve(
    context: typer.Context, model: ModelArgument, budget: BudgetOption = 0.2, method: MethodOption = "madakv"
) -> None:
    """Serve a model by vLLM with a part of its KV cache; whatever else `vllm serve` takes may follow."""
    with one_line_errors():
        from madakv.errors import MissingExtraError
        from madakv.integrations.vllm.guards import check_method
        from madakv.integrations.vllm.serving import command
        from madakv.integrations.vllm.settings import Settings
        from madakv.loading import base_folder
        from madakv.model_names import folder_of, names
        from madakv.whole import whole_folder

        settings = Settings(budget, method)
        check_method(settings)
        if importlib.util.find_spec("vllm") is None:
            raise MissingExtraError(
                "vLLM is not installed here: pip install 'madakv[vllm]', or for a CPU what docs/vllm.md says"
            )
        rest = context.args
        if model in names():
            # Clients ask for it by the name that was typed.
            rest = ["--served-model-name", model, *rest]
            model = str(folder_of(model))
        if (base := base_folder(model)) is not None:
            model = str(whole_folder(Path(model), base))
        words = command(model, settings, rest)
        os.execv(words[0], words)
