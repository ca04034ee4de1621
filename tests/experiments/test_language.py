"""Windows of text, the task that predicts their tokens, and what it writes."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tensorflow_datasets as tfds
from flax import nnx

import ssvq_jax as ssvq
from experiments import generate
from experiments.data import text, tokens
from experiments.data.batches import NotPreparedError
from experiments.models.llama import Llama, LlamaConfig, continuation
from experiments.models.network import TextNetwork
from experiments.tasks import Language
from experiments.training import calibration
from experiments.training.config import (
    Calibration,
    Compression,
    Data,
    Experiment,
    Optimization,
)
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("standard_promotion", "unchecked_types")

CONFIG = LlamaConfig(
    width=16, depth=1, heads=2, shared_heads=1, hidden=24, context=16, tied=False
)
NETWORK = TextNetwork(
    name="tiny",
    make=lambda classes, rngs: Llama(CONFIG, classes, rngs=rngs),
    size=8,
    classes=256,
)
LINES = [f"{i} apples, é and {i * i} pears\n" for i in range(200)]


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


def _open(path, split, size=8, tokenizer=None):
    tokenizer = tokenizer or tokens.Bytes()
    return text.open_windows(
        path.name, split, path.parent, tokenizer=tokenizer, size=size
    )


def test_windows_are_the_text_in_order(book):
    whole = "".join(LINES[190:195]).encode()
    split = _open(book, "validation")
    assert len(split) == len(whole) // 8 and split.classes == 256
    found = bytes(np.concatenate([x["tokens"] for x in split]).astype("u1"))
    assert found == whole[: len(found)]
    assert split[3]["bytes"] == 7 and split[3]["tokens"].dtype == np.int32
    part = _open(book, "validation[2:5]")
    assert len(part) == 3
    np.testing.assert_array_equal(part[-1]["tokens"], split[4]["tokens"])
    assert len(_open(book, None)) == len(split)


def test_parts_of_a_file_are_all_of_it(book):
    parts = [text.read(book.name, x, book.parent) for x in text._PARTS]
    assert "".join(parts) == "".join(LINES)
    (book.parent / "other.txt").write_text("one\n" * 40)
    both = text.read("", "test", book.parent)
    assert both == parts[2] + "one\n"
    (book.parent / "valid.txt").write_text("own")
    assert text.read("", "validation", book.parent) == "own"
    with pytest.raises(SystemExit, match="no test; there are .*validation"):
        text.read("", "test", book.parent)


def test_texts_of_tensorflow_datasets(tmp_path, monkeypatch):
    with (
        tfds.testing.mock_data(num_examples=5),
        pytest.raises(SystemExit, match="expected a feature text, got"),
    ):
        text.read("cifar10", "train", None)
    with pytest.raises(SystemExit, match="none: cannot be read(.|\n)*no text of that"):
        text.read("none", "train", tmp_path)

    class Stored:
        """As prepared sets give it, in bytes; mocked ones give text."""

        info = types.SimpleNamespace(features={"text": None}, splits={})

        def as_data_source(self, split):
            return [{"text": "né".encode()}, {"text": split.encode()}]

    monkeypatch.setattr(text.tfds, "builder", lambda name, data_dir: Stored())
    (tmp_path / "any").mkdir()  # where it lies when it was prepared
    for folder in (None, tmp_path):
        assert text.read("any", "train", folder) == "né\ntrain\n"

    class Absent(Stored):
        def as_data_source(self, split):
            raise OSError("no files")

    class Broken(Stored):
        def as_data_source(self, split):
            return map(Absent().as_data_source, [split])

    for kind, error in ((Absent, NotPreparedError), (Broken, SystemExit)):
        monkeypatch.setattr(
            text.tfds, "builder", lambda name, data_dir, kind=kind: kind()
        )
        with pytest.raises(error, match="any train(.|\n)*tfds build any"):
            text.read("any", "train", None)


def test_wrong_text_says_why(book):
    with pytest.raises(SystemExit, match="expected a window of 99,999 tokens or more"):
        _open(book, "test", size=99_999)
    for split in ("test[:0]", "test[90000:]"):
        with pytest.raises(SystemExit, match="expected a window of 8 tokens"):
            _open(book, split)
    with pytest.raises(SystemExit, match="no all; there are train"):
        _open(book, "all")
    with pytest.raises(SystemExit, match="windows of it such as"):
        _open(book, "test[:5%]")
    book.write_bytes(b"good\n\xff bad")
    with pytest.raises(
        SystemExit, match="book.txt: expected UTF-8, got byte 0xff at 5"
    ):
        _open(book, "train")


def test_a_vocabulary_is_found_once_and_gives_the_text_back(book, tmp_path):
    path = tmp_path / "run" / "tokenizer.json"
    task = Language(tokenizer=str(path), vocabulary=266, window=8)
    split = task.open(book.name, "test", book.parent)
    first = path.read_text()
    pairs = tokens.open_tokenizer(str(path))
    assert split.classes == 266 and len(split) < len(_open(book, "test"))
    sample = "a naïve 12\u2003line\n\n of 汉字"
    found = pairs.encode(sample)
    assert pairs.decode(found) == sample
    assert pairs.lengths[found].sum() == len(sample.encode())
    tokens.train(text.read(book.name, "train", book.parent), 266, path)
    assert path.read_text() == first
    wrong = dataclasses.replace(task, vocabulary=267)
    with pytest.raises(SystemExit, match="expected 267 tokens, got 266"):
        wrong.open(book.name, "test", book.parent)
    for count, why in ((255, "at least 256"), (99_999, "for which the text has pairs")):
        with pytest.raises(SystemExit, match=why):
            tokens.train("".join(LINES), count, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
    (tmp_path / "none.json").write_text("{}")
    for name, why in (("none.json", "no tokenizer"), ("absent", "no such tokenizer")):
        with pytest.raises(SystemExit, match=why):
            tokens.open_tokenizer(str(tmp_path / name))


def test_scores_against_plain_numpy(rng):
    logits = rng.normal(size=(5, 8, 11)).astype("f4")
    batch = {"tokens": rng.integers(0, 11, (5, 8)), "bytes": np.arange(5) + 20}
    log = scipy.special.log_softmax(logits, axis=-1)
    losses = -np.array(
        [[log[i, t, batch["tokens"][i, t + 1]] for t in range(7)] for i in range(5)]
    )
    task = Language(window=8)
    assert task.loss(logits, batch) == pytest.approx(losses.mean(), rel=1e-5)
    target = rng.normal(size=logits.shape).astype("f4")
    expected = -np.mean(np.sum(scipy.special.softmax(target, -1) * log, axis=-1))
    assert task.match(logits, target) == pytest.approx(expected, rel=1e-5)
    rows = jax.tree.map(np.asarray, task.judge(logits, batch))
    other = rows._replace(loss=rows.loss / 2)
    assert task.score(rows, other) == pytest.approx(
        {
            "log_likelihood": -losses.mean(),
            "perplexity": np.exp(losses.mean()),
            "byte_perplexity": np.exp(losses.sum() / 110),
            "perplexity_ratio": np.exp(losses.mean() / 2),
        },
        rel=1e-5,
    )
    np.testing.assert_allclose(task.each(rows), -losses.mean(axis=1), rtol=1e-5)
    huge = rows._replace(loss=rows.loss * 1e6)
    assert task.score(huge)["perplexity"] == np.inf
    with pytest.raises(SystemExit, match="expected the network's 9 tokens, got 8"):
        task.prepare({}, size=9)
    with pytest.raises(SystemExit, match="vocabulary of 266, tiny one of 256"):
        NETWORK.require_classes("book", 266)


def _experiment(book, **changes):
    options = {
        "task": Language(window=8),
        "network": NETWORK,
        "data": Data(name=str(book), train="train[:160]", validation="validation"),
        "optimization": Optimization(epochs=2, batch=16, rate=1e-2),
    }
    return Experiment(**{**options, **changes})


def test_trains_compresses_and_writes(book, tmp_path, capsys):
    whole = tiny.execute(_experiment(book), tmp_path / "float")
    assert whole["test"]["perplexity"] < whole["test"]["byte_perplexity"] * 1.001 < 100
    weights = tmp_path / "float" / "model.safetensors"
    rules = (ssvq.Rule("model/layers/.*kernel", ssvq.SSVQ(4, 8)),)
    compressed = _experiment(
        book,
        weights=str(weights),
        compression=Compression(rules=rules),
        distill=True,
        optimization=Optimization(epochs=1, batch=16, features=0.1),
    )
    result = tiny.execute(compressed, tmp_path / "packed")
    assert result["before"]["perplexity_ratio"] > 1
    path = tmp_path / "packed" / "model.ssvq.safetensors"

    model = nnx.eval_shape(lambda: NETWORK.build(nnx.Rngs(0)))
    graphdef, params = generate._weights(NETWORK, model, path)
    leaves = jax.tree.leaves(params, is_leaf=ssvq.codecs.is_compressed)
    assert sum(map(ssvq.codecs.is_compressed, leaves)) == 7
    dense = ssvq.decode(params)
    prompt = tokens.Bytes().encode("12 app")
    ways = [
        list(continuation(graphdef, x, prompt, count=99, key=jax.random.key(0)))
        for x in (params, dense)
    ]
    # Up to the end of the context, and as by the whole sequence every time.
    model, greedy = nnx.merge(graphdef, dense), list(prompt)
    while len(greedy) < 16:
        greedy.append(int(jnp.argmax(model(jnp.array([greedy]))[0, -1])))
    assert ways[0] == ways[1] == greedy[6:]
    drawn = [
        list(
            continuation(
                *(graphdef, params, prompt),
                count=6,
                temperature=2.0,
                key=jax.random.key(seed),
            )
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="less than the context of 16 tokens, got 16"):
        long = np.zeros(16, np.int32)
        next(continuation(graphdef, params, long, count=1, key=None))


def test_heads_of_many_tokens_have_no_factor_of_their_outputs(
    book, tmp_path, monkeypatch
):
    config = dataclasses.replace(CONFIG, tied=True)
    network = dataclasses.replace(
        NETWORK, make=lambda classes, rngs: Llama(config, classes, rngs=rngs)
    )
    monkeypatch.setattr(calibration, "_WIDEST", 255)
    monkeypatch.setattr(calibration, "_PROBED_AT", 4)  # small kernels have no less
    found, factors = [], ssvq.fisher_factors

    def spied(moments, gradients, **options):
        gradients = list(gradients)
        found.append((set(moments), len(gradients), options["outputs"]))
        return factors(moments, gradients, **options)

    monkeypatch.setattr(ssvq, "fisher_factors", spied)
    kernels = "model/layers/.*/(q|down)_proj/kernel"
    embedding = "model/embed_tokens/embedding"
    codecs = (ssvq.SSVQ(4, 8), ssvq.Uniform(4))
    rules = (
        *(ssvq.Rule(kernels, codec) for codec in codecs),
        ssvq.Rule(embedding, ssvq.Uniform(8)),
    )
    by_both = Calibration(bits=4, examples=24, probe=4, metric="kronecker")
    run = _experiment(
        book,
        network=network,
        weights=tiny.weights(tmp_path, network),
        distill=True,
        optimization=Optimization(epochs=0, batch=1),
        compression=Compression(rules=rules, calibration=by_both),
    )
    result = tiny.execute(run, tmp_path / "run")
    assert result["test"]["perplexity_ratio"] < 1.1
    assert embedding in {path for path, *_ in result["layers"]}
    spread = dataclasses.replace(run.compression, rules=(*rules, *rules[2:]))
    with pytest.raises(SystemExit, match=f"{embedding}: expected at most 255 outputs"):
        tiny.execute(dataclasses.replace(run, compression=spread), tmp_path / "spread")
    [(paths, count, both)] = found
    assert paths and embedding not in paths and count == 20 and both


def test_the_command_writes_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(generate._TEXT, "tiny", NETWORK)
    path = pathlib.Path(tiny.weights(tmp_path, NETWORK))
    options = generate.Options("tiny", path, "é 1", tokenizer="bytes", tokens=5)
    generate.main(options)
    captured = capsys.readouterr()
    assert captured.out.startswith("é 1") and "tokens/s, one at a time" in captured.err
    graphdef, params = generate._weights(NETWORK, NETWORK.build(nnx.Rngs(0)), path)
    prompt = tokens.Bytes().encode("é 1")
    first = next(continuation(graphdef, params, prompt, count=1, key=jax.random.key(0)))
    ending = dataclasses.replace(NETWORK, end=first)
    monkeypatch.setitem(generate._TEXT, "ending", ending)
    generate.main(dataclasses.replace(options, network="ending"))
    assert capsys.readouterr().out == "é 1\n"
    for changes, why in (
        ({"prompt": ""}, "--prompt: expected a text, got an empty one"),
        ({"prompt": "a\udcff"}, "--prompt: expected UTF-8, got a wrong byte at 1"),
        ({"prompt": "a" * 17}, "less than the context of 16 tokens, got 17"),
        ({"tokens": 0}, "--tokens: expected at least 1"),
        ({"temperature": float("nan")}, "--temperature: expected a number"),
        ({"tokenizer": None}, "there is no tokenizer.json beside"),
    ):
        with pytest.raises(SystemExit, match=why):
            generate.main(dataclasses.replace(options, **changes))
    tokens.train("".join(LINES), 266, tmp_path / "tokenizer.json")
    with pytest.raises(SystemExit, match="vocabulary of 266, tiny one of 256"):
        generate.main(dataclasses.replace(options, tokenizer=None))
