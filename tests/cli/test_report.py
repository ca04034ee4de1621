"""`ssvq report`: the page, read as text and, where there is one, by a browser."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import ssvq_jax as ssvq

pytestmark = pytest.mark.usefixtures("standard_promotion")

EVIL = "<script>alert(1)</script>.weight"


@pytest.fixture
def page(rng, tmp_path, ssvq_command):
    """A report of four tensors, with the original and a log."""
    shapes = {"a.weight": (64, 96), "b.weight": (128, 64), EVIL: (64, 65)}
    tensors = {name: rng.normal(size=x).astype("f4") for name, x in shapes.items()}
    tensors["norm.bias"] = np.ones(7, "f4")
    source, packed, html = (tmp_path / x for x in ("in", "packed", "report.html"))
    save_file(tensors, source)
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\npattern = "b.*"\nmethod = "uniform"')
    arguments = "compress", source, packed, "--rules", rules, "--quiet"
    assert ssvq_command(*arguments)[0] == 0
    log = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "flipped": i / 100, "frozen": i / 300} for i in range(3)]
    log.write_text("\n".join(map(json.dumps, [{"step": 0, "loss": 1.0}, *lines])))
    arguments = "report", packed, "--html", html, "--against", source, "--log", log
    status, output, error = ssvq_command(*arguments)
    assert status == 0, error
    assert f"{html.stat().st_size:,} bytes, 4 tensors" in " ".join(output.split())
    return html, packed, source


def test_says_what_is_in_the_file(page, ssvq_command):
    html, packed, source = page
    text = html.read_text()
    report = ssvq.report(ssvq.load(packed))
    assert f"<b>{packed.stat().st_size:,}</b>" in text
    assert f"<b>{report.compressed.bits_per_weight:.3f}</b>" in text
    numbers = re.findall(r'<dd class="number">([\d,]+) <span', text)
    kinds = sum(int(number.replace(",", "")) for number in numbers)
    assert kinds == packed.stat().st_size and len(numbers) == 5
    verified = json.loads(
        ssvq_command("verify", packed, "--against", source, "--json")[1]
    )
    errors = {x["name"]: x["error"] for x in verified["parameters"]}
    assert f"{errors['a.weight']:.4f}" in text and f"{errors['b.weight']:.4f}" in text
    assert text.count("<svg") == 4 and "Signs over the training" in text


def test_needs_no_network_and_runs_no_names(page):
    text = page[0].read_text()
    assert EVIL not in text and "&lt;script&gt;alert(1)" in text
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', text))
    assert all(link.startswith("data:image/png") for link in links)
    assert "default-src 'none'" in text


def test_without_an_original_and_what_cannot_be(page, tmp_path, ssvq_command):
    html, packed, source = page
    arguments = "report", packed, "--html", html
    assert ssvq_command(*arguments, "--quiet") == (0, "", "")
    assert "Signs over the training" not in html.read_text()
    log = tmp_path / "log"
    for content, message in (
        ("{", "no log of a training run"),
        ("[1]", "no log of a training run"),
        ('{"flipped": 1}', "a line without a step"),
        ('{"step": 1, "flipped": "x"}', "expected numbers"),
        ('{"step": 1, "loss": 1}', "no line has flipped or frozen"),
    ):
        log.write_text(content)
        status, _, error = ssvq_command(*arguments, "--log", log)
        assert status == 2 and message in " ".join(error.split())
    other = {name: np.zeros((3, 3), "f4") for name in ("a.weight", "b.weight")}
    save_file(other, tmp_path / "other")
    status, _, error = ssvq_command(*arguments, "--against", tmp_path / "other")
    assert status == 2 and "expected shape (" in " ".join(error.split())
    assert ssvq_command("report", packed, "--html", packed)[0] == 2
    status, _, error = ssvq_command("report", source, "--html", html)
    assert status == 2 and "not written by ssvq_jax" in " ".join(error.split())


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = map(shutil.which, ("chromium", "chromedriver"))
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    found.implicitly_wait(5)
    yield found
    found.quit()


def test_in_a_browser(page, browser):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def names():
        rows = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
        return [
            row.find_element(By.TAG_NAME, "td").text
            for row in rows
            if row.is_displayed()
        ]

    colors = set()
    for width, scheme in ((1400, "light"), (400, "dark")):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [media]})
        browser.get(page[0].as_uri())
        wide = "return document.documentElement.scrollWidth"
        assert browser.execute_script(wide) <= width
        body = browser.find_element(By.TAG_NAME, "body")
        colors.add(body.value_of_css_property("background-color"))
    assert len(colors) == 2
    assert browser.get_log("browser") == []
    assert names() == ["b.weight", "a.weight", EVIL, "norm.bias"]  # by bytes

    bits = browser.find_elements(By.CSS_SELECTOR, "th button")[4]
    bits.send_keys(Keys.ENTER)  # by keyboard
    assert names()[0] == "norm.bias"
    bits.click()
    assert names()[-1] == "norm.bias"
    head = bits.find_element(By.XPATH, "..")
    assert head.get_attribute("aria-sort") == "ascending"
    browser.find_elements(By.CSS_SELECTOR, "th button")[0].click()
    assert names() == ["norm.bias", "b.weight", "a.weight", EVIL]

    field = browser.find_element(By.ID, "filter")
    field.send_keys("uniform")
    assert names() == ["b.weight"]
    assert browser.find_element(By.ID, "count").text == "1 of 4 tensors"
    field.send_keys(Keys.BACKSPACE * 7)
    browser.find_element(By.LINK_TEXT, "a.weight").click()
    opened = browser.find_elements(By.CSS_SELECTOR, "details[open] svg")
    assert len(opened) == 1 and opened[0].is_displayed()
    assert browser.get_log("browser") == []
