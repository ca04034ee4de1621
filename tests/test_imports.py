"""Who may import whom: read from the sources, so that no import is run for it."""

import ast
import pathlib
from collections.abc import Iterator, Mapping

ROOT = pathlib.Path(__file__).parents[1]

LIBRARY = {
    "ssvq_jax.core": 0,
    "ssvq_jax.codecs": 1,
    "ssvq_jax.tree": 2,
    "ssvq_jax.freeze": 3,
    "ssvq_jax.calibration": 3,
    "ssvq_jax.export": 3,
    "ssvq_jax.linen": 4,
    "ssvq_jax.nnx": 4,
    "ssvq_jax.checkpoint": 4,
    "ssvq_jax.page": 5,
    "ssvq_jax.accelerator": 4,
    "ssvq_jax.api": 5,  # the names that users import, and nothing else
    "ssvq_jax.reader": 0,  # alone
    "ssvq_jax": 6,
    "ssvq_jax.cli": 7,
    "experiments": 8,
}

EXPERIMENTS = {
    "experiments.data": 0,
    "experiments.models": 1,
    "experiments.tasks": 2,
    "experiments.training": 3,
    "experiments.configs": 4,
    "experiments.report": 5,
    "experiments.benchmarks": 6,
    "experiments.measurements": 6,
    "experiments.train": 7,
    "experiments.compress": 7,
    "experiments.evaluate": 7,
    "experiments.unfold": 7,
    "experiments.generate": 8,
    "experiments.quickstart": 7,
    "experiments": 9,
    "ssvq_jax.cli": 10,  # what a person types; nobody imports it
}


def test_imports_of_the_library_run_down():
    assert not violations("ssvq_jax", LIBRARY)


def test_imports_of_the_experiments_run_down():
    assert not violations("experiments", EXPERIMENTS)


def test_an_import_that_runs_up_is_found(tmp_path):
    sources = {
        "a/__init__.py": "from a.low.one import f\n",
        "a/low/one.py": "import json\ndef f():\n    from a import high\n",
        "a/low/two.py": "from a.low import one\nimport a\nimport other.thing\n",
        "a/high.py": "from a.low import one, two\nimport a.beside as x\n",
        "a/beside.py": "from .low.two import g\nfrom . import high\n",
        "a/forgotten.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    ranks = {"a.low": 0, "a.high": 1, "a.beside": 1, "a": 2, "other": 3}
    assert violations("a", ranks, tmp_path) == [
        "a/beside.py: a.high",
        "a/forgotten.py: has no rank",
        "a/high.py: a.beside",
        "a/low/one.py: a.high",
        "a/low/two.py: a",
        "a/low/two.py: other.thing",
    ]


def violations(
    package: str, ranks: Mapping[str, int], root: pathlib.Path = ROOT
) -> list[str]:
    """Imports that run up, as `file: import`; those without a rank are not looked at.

    The rank of a module is that of the longest entry that its dotted name lies under.
    It may import what lies under the same entry, or under one of a lower rank.

    Args:
      package: Name of the package whose modules are read.
      ranks: By the dotted names of modules and packages. If some are in `package`,
        then all of its modules need one, and that of `package` itself is for its
        `__init__`.
      root: The folder that the package is in.
    """
    divided = any(entry.startswith(f"{package}.") for entry in ranks)
    found = []
    for path in sorted((root / package).rglob("*.py")):
        file = path.relative_to(root)
        parts = file.with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        own = _entry(module, ranks)
        if own is None or (divided and own == package != module):
            found.append(f"{file}: has no rank")
            continue
        for name in _imports(path, parts[:-1]):
            entry = _entry(name, ranks)
            if entry not in (None, own) and ranks[entry] >= ranks[own]:
                found.append(f"{file}: {name}")
    return found


def _entry(name: str, ranks: Mapping[str, int]) -> str | None:
    """The longest entry that a dotted name lies under."""
    while name and name not in ranks:
        name = name.rpartition(".")[0]
    return name or None


def _imports(path: pathlib.Path, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names of all that a module imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{origin}.{alias.name}" for alias in node.names)
