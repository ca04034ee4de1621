"""Every block of code on every page runs, in order, in an empty folder."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import tomllib
from unittest import mock

import pytest
from sybil import Document
from sybil.parsers.markdown import (
    CodeBlockParser,
    PythonCodeBlockParser,
    SkipParser,
)

import ssvq_jax as ssvq
import ssvq_jax.accelerator
import ssvq_jax.linen
import ssvq_jax.nnx
import ssvq_jax.reader

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "ssvq_jax" / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
KNOWN = {"python", "sh", "toml", "bibtex", ""}  # the last two are to be read
HAS_TORCH = importlib.util.find_spec("torch") is not None  # gigabytes: not in `test`


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("standard_promotion")
def test_the_code_on_a_page_runs(path, tmp_path, monkeypatch, ssvq_command):
    monkeypatch.chdir(tmp_path)

    def shell(example):
        lines = example.parsed.replace("\\\n", " ").splitlines()
        for command in (part for line in lines for part in line.split(" && ")):
            program, *arguments = shlex.split(command, comments=True) or [""]
            if program == "ssvq":
                status, _, error = ssvq_command(*arguments)
                assert status == 0, f"{command}\n{error}"
            elif program == "python":  # takes minutes: what it names has to be there
                assert importlib.util.find_spec(arguments[1]), command
                configs = [x for x in arguments if x.startswith("experiments/")]
                assert all((ROOT / name).exists() for name in configs), command
            else:
                assert program in ("pip", "pytest", "git", ""), command

    parsers = [
        PythonCodeBlockParser(),
        CodeBlockParser("sh", shell),
        CodeBlockParser("toml", lambda example: tomllib.loads(example.parsed) and None),
        SkipParser(),
    ]
    with mock.patch.dict(ssvq.codecs.CODECS):  # a page adds one of its own
        for example in Document.parse(str(path), *parsers).examples():
            if HAS_TORCH or "import torch" not in example.parsed:
                example.evaluate()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_say_what_they_are(path):
    fences = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= KNOWN and not any(fences[1::2])


def test_every_public_name_is_described():
    page = (DOCS / "api.md").read_text()
    for module, name in (
        (ssvq, "(?:api|calibration|codecs|tree)"),  # where `ssvq_jax.NAME` is defined
        (ssvq_jax.nnx, "nnx"),
        (ssvq_jax.linen, "linen"),
        (ssvq_jax.reader, "reader"),
        (ssvq_jax.accelerator, "accelerator"),
    ):
        pattern = rf"^::: ssvq_jax\.{name}(?:\.\w+)*\.(\w+)$"
        listed = set(re.findall(pattern, page, re.MULTILINE))
        own = set(ssvq.__all__) if module is ssvq else _defined(module)
        own -= {"jaxtyping"}  # tests put it in
        assert own <= listed, sorted(own - listed)


def _defined(module):
    """Public functions, classes and constants of a module, or of its package."""
    return {
        name
        for name, value in vars(module).items()
        if name[0] != "_"
        and (
            isinstance(value, str | dict)
            or callable(value)
            and str(getattr(value, "__module__", "")).startswith(module.__name__)
        )
    }


def test_functions_named_like_their_module_are_shown_as_functions():
    """The site takes `package.name` for the module where there is one of that name."""
    page = (DOCS / "api.md").read_text()
    for name in re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE):
        parent, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(parent), last)
        file = str(getattr(found, "__module__", "")).rpartition(".")[2]
        assert file != last or name.endswith(f".{last}.{last}"), name
