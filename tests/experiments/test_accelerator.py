from experiments.measurements import accelerator
from experiments.report.results import Results


def test_quick_run_writes_page_and_plots(tmp_path):
    assert accelerator.main(accelerator.Options(out=tmp_path, quick=True)) == 0
    page = (tmp_path / "accelerator.md").read_text()
    assert "nan" not in page and page.count("##") == 7
    results = Results(tmp_path, "accelerator")
    assert [row["rate"] for row in results.like("sweep")] == [0.8, 3.2, 12.8]
    for name in ("sweep", "timeline", "roofline"):
        assert (tmp_path / f"accelerator_{name}.png").stat().st_size > 1000
