"""Pages and plots from results, and the numbers in them."""

import functools
import pathlib
import re
import shutil

import numpy as np
import pytest

from experiments.report import numbers, pages, tables
from experiments.report.__main__ import Options, main
from experiments.report.plots import PLOTS
from experiments.report.results import Absent, Missing, Results, Run, command
from experiments.training import records
from experiments.training.config import load
from experiments.training.records import RESULTS

SOURCES = sorted(
    x.relative_to(RESULTS).with_suffix("").as_posix() for x in RESULTS.rglob("*.jsonl")
)


@pytest.fixture(scope="module")
def committed():
    return functools.cache(functools.partial(Results, RESULTS))


@pytest.fixture
def changed(tmp_path):
    """A copy of the committed results; call it to change a run there."""
    for source in SOURCES:
        path = tmp_path / f"{source}.jsonl"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(RESULTS / f"{source}.jsonl", path)

    def change(source, name, record):
        path = tmp_path / f"{source}.jsonl"
        lines = records.read(path)
        records.write(path, {**lines, name: record(lines[name])})
        return functools.partial(Results, tmp_path)

    return change


@pytest.mark.parametrize("name", pages.PAGES)
def test_committed_pages_are_those_of_the_committed_results(name, committed):
    text = (RESULTS / f"{name}.md").read_text()
    assert pages.render(name, committed).text == text, (
        "run python -m experiments.report"
    )
    assert "nan" not in text.split() and "None" not in text


def test_every_plot_is_drawn_and_every_link_leads_somewhere(tmp_path, committed):
    texts = {path: path.read_text() for path in RESULTS.rglob("*.md")}
    anchors = {
        path: {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        for path, text in texts.items()
    }
    linked = set()
    for path, text in texts.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            linked.add(file)
            assert file.exists(), f"{path}: {link}"
            assert not anchor or anchor in anchors[file], f"{path}: {link}"
    assert set(texts) == {RESULTS / f"{name}.md" for name in pages.PAGES}
    assert linked >= set(texts) | set(RESULTS.rglob("*.png"))
    assert {RESULTS / f"{name}.png" for name in PLOTS} == set(RESULTS.rglob("*.png"))


@pytest.mark.parametrize("name", sorted({*PLOTS} - {"benchmarks"}))
def test_plots_are_figures_of_the_results(name, committed):
    figure = PLOTS[name](committed)
    drawn = [a for a in figure.axes if a.lines or a.patches or a.collections]
    assert drawn and any(axis.get_xlabel() for axis in drawn)


def test_pages_and_plots_are_written_and_absent_ones_told(tmp_path, capsys):
    shutil.copy(RESULTS / "sizes.jsonl", tmp_path)
    (tmp_path / "few_images").mkdir()
    shutil.copy(RESULTS / "few_images/bits.jsonl", tmp_path / "few_images")
    assert main(Options(results=tmp_path)) == 0
    written = {x.relative_to(tmp_path).as_posix() for x in tmp_path.rglob("*.*")}
    made = {"sizes.md", "few_images/bits.md", "few_images/few_images.png"}
    assert written == made | {"sizes.jsonl", "few_images/bits.jsonl"}
    told = capsys.readouterr().out
    assert "left out: cifar10/dominance.md: cifar10/dominance.jsonl is missing" in told
    assert (
        "python -m experiments.measurements.dominance --data-dir DIR makes it" in told
    )
    assert "left out: README.md" in told and "left out: sizes.md" not in told
    assert main(Options(("nowhere",), tmp_path)) == 2
    assert "no page nowhere" in capsys.readouterr().out


def test_a_missing_number_is_an_error_with_page_and_name(changed, tmp_path, capsys):
    def without(record):
        return {k: v for k, v in record.items() if k != "flipped"}

    load = changed("cifar10/ablation", "sign_rate-10-learned", without)
    wanted = (
        r"cifar10/ablation.md: cifar10/ablation.jsonl: sign_rate-10-learned has no "
        "flipped"
    )
    with pytest.raises(Missing, match=wanted):
        pages.render("cifar10/ablation", load)
    assert main(Options(("cifar10/ablation",), tmp_path)) == 1
    assert "error: cifar10/ablation.md: " in capsys.readouterr().out
    assert not (tmp_path / "cifar10/ablation.md").exists()

    load = changed("sizes", "yolox_nano, 16 codewords", lambda _: {"model": "x"})
    with pytest.raises(Missing, match=r"sizes.md: .*yolox_nano, 16 .* has no weights"):
        pages.render("sizes", load)


def test_what_a_template_does_not_know_is_an_error(tmp_path, monkeypatch, committed):
    (tmp_path / "page.md.j2").write_text("{{ unheard }}")
    monkeypatch.setattr(pages, "_TEMPLATES", tmp_path)
    with pytest.raises(Missing, match=r"page.md: 'unheard' is undefined"):
        pages.render("page", committed)
    (tmp_path / "page.md.j2").write_text("{{ plot('nowhere') }}")
    with pytest.raises(Missing, match=r"page.md: no plot nowhere"):
        pages.render("page", committed)


def test_a_diverged_run_is_shown_in_a_sweep_and_an_error_elsewhere(changed):
    def lost(record):
        return {"experiment": record["experiment"], "diverged": 50}

    for source, run, page in (
        ("cifar10/rates", "vq-0.003-0.001", "cifar10/choices"),
        ("cifar10/thresholds", "frozen-0.3", "cifar10/choices"),
        (
            "few_images/rates",
            "efficientnet_lite0-vq-1.5-0.001-0.001",
            "few_images/rates",
        ),
    ):
        text = pages.render(page, changed(source, run, lost)).text
        assert "diverged by step 50" in text
    assert (
        "**71.96**" in pages.render("cifar10/choices", changed(source, run, lost)).text
    )
    load = changed("cifar10/bits", "vq-2", lost)
    wanted = "cifar10/bits.jsonl: vq-2 has diverged by step 50"
    for page in ("cifar10/bits", "README"):
        with pytest.raises(Missing, match=f"{page}.md: {wanted}"):
            pages.render(page, load)
    with pytest.raises(Missing, match=wanted):
        PLOTS["cifar10/pareto"](load)


def test_words_that_results_do_not_bear_out_are_an_error(changed, committed):
    text = pages.render("README", committed).text
    assert "below 2 bits: yes.** Learned signs beat VQ and MVQ" in " ".join(
        text.split()
    )
    other = records.read(RESULTS / "cifar100/bits.jsonl")["mvq-1.5"]
    as_bad = {name: other[name] for name in ("test", "each")}
    load = changed("cifar100/bits", "learned-1.5", lambda x: {**x, **as_bad})
    with pytest.raises(Missing, match=r"README.md: .*no longer show .*beat VQ and MVQ"):
        pages.render("README", load)


def test_a_results_file_that_is_missing_is_told_with_its_command(tmp_path):
    wanted = f"cifar10/bits.jsonl is missing; {command('cifar10/bits')} makes it"
    with pytest.raises(Absent, match=re.escape(wanted)):
        Results(tmp_path, "cifar10/bits")


@pytest.mark.parametrize("source", [x for x in SOURCES if "/" in x])
def test_commands_are_those_that_made_the_results(source, committed):
    script = command(source).split(" --")[0]
    for line in committed(source).values():
        assert line["command"].startswith(script)
    config = pathlib.Path("experiments/configs", f"{source}.py")
    if config.exists():
        assert list(load(config)) == list(committed(source))


def test_nothing_was_chosen_by_test_images(committed):
    for source in ("cifar10/rates", "cifar10/masks", "cifar10/thresholds",
                   "cifar10/three_bits_rates", "few_images/rates",
                   "cifar100/rates", "coco/tuning_rates",
                   "camvid/tuning_rates"):  # fmt: skip
        for run in committed(source).values():
            assert run["validation"] and not run["test"]


def _run(right, **values):
    each = records.pack(np.asarray(right, bool))
    known = {"test": {"top1": np.mean(right)}, "each": each}
    experiment = {"task": {"kind": "Classification"}}
    return Run("vq-1.5", {**known, "experiment": experiment, **values}, "tiny")


def test_differences_are_taken_image_by_image(rng):
    ours, theirs = rng.random((3, 1000)) < 0.6, rng.random((2, 1000)) < 0.5
    found = numbers.gap([_run(x) for x in ours], [_run(x) for x in theirs])
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    error = differences.std(ddof=1) / 1000**0.5
    assert found.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.half == pytest.approx(1.9623 * error, rel=1e-4)
    assert found.more and not found.less
    assert str(numbers.Gap(-0.0123, 0.004)) == "-1.23 ± 0.40"
    alone = _run(np.arange(1000) < 300)
    assert numbers.half(alone) == pytest.approx(
        1.9623 * (0.3 * 0.7 / 999) ** 0.5, rel=1e-4
    )
    assert numbers.gap(alone, alone) == (0, 0)
    first, second = (_run(x) for x in ours[:2])
    beyond = numbers.gap(first, alone, (second, alone))
    assert beyond == pytest.approx(numbers.gap(first, second))


def test_scores_that_are_no_means_differ_by_themselves(committed):
    runs = committed("coco/bits")
    coded, vq = (runs[f"yolox_nano-calibrated-{x}-2"] for x in ("coded", "vq"))
    found = numbers.gap(coded, vq)
    assert found.mean == coded.accuracy - vq.accuracy
    assert found.half == numbers.half_width(coded.each - vq.each)


def test_runs_by_their_names(committed):
    runs = committed("cifar10/headline")
    assert [x.name for x in runs.of("vq", 1.5)] == ["vq-1.5-0", "vq-1.5-1", "vq-1.5-2"]
    assert runs.of("float", 32)[0].bits == 32
    assert runs["fixed-1.5-0"].codec == "(16, 8)"
    assert committed("cifar10/bits")["mvq-1.5"].codec == "(32, 6, (4, 6))"
    with pytest.raises(Missing, match=r"headline.jsonl has no vq-9"):
        runs.of("vq", 9)
    rates = committed("cifar10/three_bits_rates")
    assert rates["float-1e-05"].parts == ["float", "1e-05"]
    few = committed("few_images/rates")["efficientnet_lite0-ssvq-1.5-0.001-0.00003"]
    assert few.method == "frozen" and few.parts[3:] == ["0.001", "0.00003"]


def test_tables_and_paragraphs_in_markdown():
    assert (
        tables.header("a", ["b", "c"], left=(0, 2))
        == "| a | b | c |\n| --- | ---: | --- |"
    )
    assert tables.row("x", [1, ""], 2.5) == "| x | 1 |  | 2.5 |"
    ragged = "# A\n\none\ntwo  \n\n- an item\n  of two\n- `a  b`\n\n    code  1\n"
    filled = "# A\n\none two\n\n- an item of two\n- `a  b`\n\n    code  1\n"
    assert pages._wrapped(ragged) == filled
    lines = pages._wrapped(50 * "word " + 50 * "at 4. It - or + is ").splitlines()
    assert max(map(len, lines)) <= 88 < len(lines[0] + lines[1])
    assert not any(re.match(r"(\d+\.|[-+*]) ", line) for line in lines)


def test_accuracy_is_the_metric_of_the_task():
    values = {"experiment": {"task": {"kind": "Segmentation"}}, "test": {"miou": 0.4}}
    assert Run("x", values).accuracy == 0.4
