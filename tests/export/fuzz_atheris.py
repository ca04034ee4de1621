"""Coverage-guided fuzzing of `load`: a file is refused, or it could have been written.

    pip install atheris && python -m tests.export.fuzz_atheris -runs=200000

Takes the options of libFuzzer. Inputs start from the golden files; every second one
gets right hashes before it is read, so that the checks behind those are met. Prints
what became of the inputs; anything else than refusal or a sound tree stops it with the
input and its traceback.
"""

import collections
import pathlib
import random
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["ssvq_jax.export"]):
    import ssvq_jax as ssvq
from tests.export.rewriting import repaired
from tests.export.test_fuzz import EXAMPLES, is_sound

EVERY = 20_000
counts: collections.Counter[str] = collections.Counter()
file = pathlib.Path(tempfile.mkdtemp(), "fuzzed")


def test_one_input(data: bytes) -> None:
    """Read one input as a file."""
    file.write_bytes(data)
    try:
        tree = ssvq.load(file)
    except ssvq.FormatError as error:
        assert str(file) in str(error)
        counts["refused"] += 1
    else:
        identical = data in originals
        assert identical or is_sound(tree)
        counts["identical" if identical else "altered, with right hashes"] += 1
    if counts.total() % EVERY == 0:
        print(f"{counts.total()} inputs: {dict(counts)}", flush=True)


def mutate(data: bytes, largest: int, seed: int) -> bytes:
    """One of libFuzzer's changes, and for half of them right hashes."""
    changed = atheris.Mutate(data, largest)
    mended = repaired(changed) if random.Random(seed).random() < 0.5 else None
    return mended if mended is not None and len(mended) <= largest else changed


if __name__ == "__main__":
    originals = [path.read_bytes() for path in EXAMPLES]
    corpus = pathlib.Path(tempfile.mkdtemp())
    for number, original in enumerate(originals):
        (corpus / str(number)).write_bytes(original)
    atheris.Setup(
        [*sys.argv, "-max_len=2000", str(corpus)],
        test_one_input,
        custom_mutator=mutate,
    )
    atheris.Fuzz()
