"""The page in a real browser: every control, photographs dropped, a narrow screen, no request elsewhere, no error."""

import json
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the page needs FastAPI: pip install '.[web]'")
pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs Chromium: apt-get install chromium chromium-driver", allow_module_level=True)

import uvicorn  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

import cmma_jax  # noqa: E402
from cmma_jax.data import load_dataset  # noqa: E402
from cmma_jax.sampling.face_model import GUIDANCE_OF_FEW  # noqa: E402
from cmma_jax.web import server, studio  # noqa: E402

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")


class Page:
    """The page in a browser."""

    def __init__(self, driver, url, folder):
        self.driver, self.url, self.folder = driver, url, folder

    def open(self, tab, width=1280, height=900):
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#{tab}")
        self.until(lambda: self.driver.execute_script(
            "return document.querySelector('[role=tab][aria-selected=true]')?.id") == f"tab-{tab}"
            and self("#model option"))

    def __call__(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        (found,) = self(selector)
        return found

    def click(self, selector):
        element = self.one(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def source(self, name):
        return self.one(f"#{name}").get_attribute("src")

    def text(self, selector):
        return self.one(selector).text

    def slide(self, selector, value, release=True):
        """Moves a slider, or types into a field; release: whether it is let go."""
        for kind in ("input", "change") if release else ("input",):
            self.driver.execute_script("arguments[0].value = arguments[1]; "
                                       "arguments[0].dispatchEvent(new Event(arguments[2]))", self.one(selector), value,
                                       kind)

    def set(self, name, kind):
        """Sets an attribute; its group is opened by the search."""
        self.slide("#search", name)
        self.click(f"aside > div:not([hidden]) [aria-label='{name}: {kind}']")
        self.slide("#search", "")

    def until(self, holds, seconds=20):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} seconds; the page says {self('#trouble')[0].text!r}")

    def changes(self, action, *names):
        """Does something and waits until each of some pictures is another."""
        before = {name: self.source(name) for name in names}
        action()
        self.until(lambda: all(self.source(name) not in (None, before[name]) for name in names))

    def settled(self, name):
        """Returns a picture once nothing is asked for any more."""
        self.until(lambda: self.source(name) and self.quiet())
        return self.source(name)

    def quiet(self):
        return self.one("#stage").get_attribute("aria-busy") == "false"

    def downloaded(self):
        return self.until(lambda: [path for path in self.folder.glob("*.png") if path.stat().st_size])[0]


@pytest.fixture(scope="module")
def url(named_runs):
    models = [cmma_jax.load(named_runs.parent / name) for name in ("runs/cmma", "runs/cgan", "vae-plane")]
    test = load_dataset("folder", models[0].run.config.data_dir, image_size=16).test
    (named_runs / "results-folder-test.json").write_text('{"cmma": {"bound": [28543.4, 106.8]}}')
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = server.make_app(models, test, named_runs, server.names_of("127.0.0.1"))
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, url, tmp_path):
    """The page; after each test its console is empty and every request went to its own server."""
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    yield Page(driver, url, tmp_path)
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [message["params"]["request"]["url"] for message in messages
             if message["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5 and not [each for each in asked if not each.startswith((url, "data:", "blob:", "about:"))]
    assert driver.get_log("browser") == []


def test_make_a_face(page):
    page.open("make")
    page.until(lambda: len(page("#samples img")) == studio.BATCH)  # samples alone: a flow's mean is a blur
    page.settled("made")
    assert page.text("#made-caption").startswith("Sample 1 of seed 0")
    page.changes(lambda: page.set("Male", "yes"), "made")
    assert "Male" in page.one("#made").get_attribute("alt") and page.text("#chosen").startswith("Male")
    slider = "#panel-wanted [aria-label='Intensity of Male']"
    assert not page.one(slider).is_displayed()  # a flow is guided instead
    assert page.text("#guidance-said") == f"{GUIDANCE_OF_FEW:.1f}"
    page.changes(lambda: page.slide("#guidance", 4), "made")
    assert page.text("#guidance-said") == "4.0"
    page.settled("made")  # its samples too, of which the large face is one
    page.slide("#guidance", 10, release=False)
    preview = page.settled("made")
    page.changes(lambda: page.slide("#guidance", 10), "made")
    assert page.settled("made") != preview
    page.changes(lambda: page.set("Male", "no"), "made")
    page.changes(lambda: page.set("Male", "any"), "made")
    assert page.text("#chosen") == "Nothing is set."

    page.set("Mouth Closed", "yes")
    page.changes(lambda: page.set("Mouth Wide Open", "yes"), "made")  # which contradicts it
    assert page.text("#chosen").split("\n") == ["Mouth Wide Open ×", "Clear all"]
    page.changes(lambda: page.click("#chosen .clear"), "made")

    page.changes(lambda: Select(page.one("#presets")).select_by_visible_text("Fig. 6: male, Asian"), "made")
    assert len(page("#chosen button:not(.clear)")) == 8
    shown = page.source("made")
    page.click("#samples button:nth-child(4)")
    assert page.source("made") != shown and page.text("#made-caption").startswith("Sample 4 of seed 0")
    page.changes(lambda: page.click("#reseed"), "made")
    page.changes(lambda: page.slide("#seed", 12), "made")
    page.slide("#temperature", 0)
    page.until(lambda: len({image.get_attribute("src") for image in page("#samples img")}) == 1)
    page.click("#download-made")
    with Image.open(page.downloaded()) as saved:
        assert saved.size == (16, 16)


def test_the_last_request_wins(page):
    page.open("make")
    page.set("Male", "yes")
    page.settled("made")
    moves = "for (const v of [1.2, 2, 3, 3.5, 4, %s]) { s.value = v; s.dispatchEvent(new Event('input')); }"
    script = "const s = document.querySelector('#guidance');"
    page.driver.execute_script(script + moves % 1.1)
    after = page.settled("made")
    page.driver.execute_script(script + moves % 3.9)
    assert page.settled("made") != after
    page.driver.execute_script(script + moves % 1.1)
    assert page.settled("made") == after


def test_search(page):
    page.open("make")
    page.one("#search").send_keys("mouth w")
    shown = [field.text.split("\n")[0] for field in page("#panel-wanted .attribute") if field.is_displayed()]
    assert shown == ["Mouth Wide Open"]
    page.one("#search").send_keys("xyz")
    assert page.one("#none-found").is_displayed()


def test_change_a_face(page):
    page.open("change")
    page.until(lambda: page.source("edited") and page.source("reconstruction"))
    page.changes(lambda: page.click("#picker button:nth-child(6)"), "original", "reconstruction", "edited")
    assert page.one("#picker button:nth-child(6)").get_attribute("aria-pressed") == "true"
    page.click("#picker-more")
    assert page.text("#picker-page") == "25 to 48 of 100"
    page.click("#picker-back")
    said = [each.text for each in page("#panel-changes .inferred") if each.is_displayed()]
    assert said and all(each.startswith(("inferred: 0.", "inferred: 1.")) for each in said) and "±" in said[0]

    page.settled("edited")
    other = "no" if float(said[0].split()[1]) > 0.5 else "yes"
    page.changes(lambda: page.set("Male", other), "edited")
    page.changes(lambda: page.slide("#intensity", -0.5), "edited", "swipe-after")
    page.changes(lambda: page.click("#keep-detail"), "edited")
    assert page.text("#edited-caption") == f"Edit: {'no ' * (other == 'no')}Male"
    assert page.text("#intensity-said") == "-0.5"
    page.slide("#swipe", 100)
    assert page.one("#swipe-after").value_of_css_property("clip-path") == "inset(0px 0px 0px 0%)"
    pair = page.one(".pair")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", pair)
    swipe = ActionChains(page.driver).move_to_element_with_offset(pair, -50, 0).click_and_hold()
    swipe.move_by_offset(5, 0).release().perform()
    assert 55 < float(page.one("#swipe").get_attribute("value")) < 75

    page.click("#strip-card summary")
    page.until(lambda: len(page("#strip button")) == 15)
    page.changes(lambda: page.click("#strip button[data-name='Big Lips']"), "edited")
    assert "Big Lips" in page.text("#chosen")
    page.click("#download-edited")
    assert page.downloaded().name == "face-edited.png"


def test_a_made_face_is_changed(page):
    page.open("make")
    page.until(lambda: len(page("#samples img")) == studio.BATCH)
    page.click("#samples button:nth-child(2)")
    made = page.source("made")
    page.click("#change-made")
    page.until(lambda: page.source("edited"))
    assert page.source("original") == made and page.one("#tab-change").get_attribute("aria-selected") == "true"
    page.until(lambda: page.source("edited") == made)  # details kept, nothing changed: the face itself


@pytest.fixture
def photo(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((480, 360), Image.Resampling.BICUBIC).save(folder / "photo.jpg", quality=95)
    return folder / "photo.jpg"


def test_a_photograph_is_dropped_and_its_square_moved(page, photo):
    page.open("make")
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": {
            "items": [], "files": [str(photo)], "dragOperationsMask": 1}})
        if kind == "dragOver":
            page.until(lambda: page.one("#dropping").is_displayed())
    page.until(lambda: page.one("#cropping").is_displayed() and page.source("edited"))
    assert not page.one("#dropping").is_displayed() and "No face was found" in page.text("#crop-said")
    page.settled("original")
    box = page.one("#crop-box")
    page.changes(lambda: box.send_keys(Keys.ARROW_LEFT * 3), "original")
    page.settled("original")
    before = box.size["width"]
    page.changes(lambda: box.send_keys("+"), "original")
    assert box.size["width"] > before
    page.settled("original")
    page.changes(lambda: page.slide("#crop-size", 0.3), "original", "reconstruction")
    assert page.text("#crop-size-said") == "144 pixels"
    page.settled("original")
    place = box.location["x"]
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
    page.changes(lambda: ActionChains(page.driver).drag_and_drop_by_offset(box, 40, 10).perform(), "original")
    assert box.location["x"] == pytest.approx(place + 40, abs=3)
    page.settled("original")
    handle = page.one("#crop-handle")
    page.changes(lambda: ActionChains(page.driver).drag_and_drop_by_offset(handle, 30, 30).perform(), "original")
    assert float(page.text("#crop-size-said").split()[0]) > 150


def test_a_photograph_is_chosen_and_what_is_too_large_is_told(page, photo, tmp_path):
    page.open("change")
    page.until(lambda: page.source("edited"))
    page.changes(lambda: page.one("#photo").send_keys(str(photo)), "original")
    (tmp_path / "large.png").write_bytes(b"x" * (10 * 2**20 + 1))
    page.one("#photo").send_keys(str(tmp_path / "large.png"))
    assert "10.0 MiB; at most 10 MiB" in page.until(lambda: page.text("#trouble"))
    page.changes(lambda: page.click("#picker button:nth-child(1)"), "original")
    assert not page.one("#cropping").is_displayed()


def test_compare(page):
    page.open("compare")
    page.until(lambda: len(page("#compared img")) == 3 * (studio.BATCH + 1))
    assert [each.text.split()[0] for each in page("#compared h3")] == ["cmma", "cgan", "vae"]
    pictures = "return [...document.querySelectorAll('#compared img')].map((image) => [image.src, image.alt])"
    before = page.driver.execute_script(pictures)
    page.set("Male", "yes")
    page.until(page.quiet)
    after = page.driver.execute_script(pictures)
    count = 2 * (studio.BATCH + 1)  # a VAE makes the same faces whatever is asked for
    assert all(new != old for (new, _), (old, _) in zip(after[:count], before[:count], strict=True))
    assert after[0][1] == "cmma, mean: Male"
    assert page.until(lambda: page("#results td"))[0].text == "28,543 +- 107"


def test_a_model_that_does_not_look_at_faces_says_so(page):
    page.open("make")
    page.settled("made")
    page.changes(lambda: Select(page.one("#model")).select_by_value("cgan"), "made")
    page.click("#tab-change")
    assert "The cgan cannot encode a face" in page.text("#trouble")
    Select(page.one("#model")).select_by_value("vae")
    page.until(page.quiet)
    assert not page.one("#trouble").is_displayed()


def test_the_keyboard_is_enough(page):
    page.open("make")
    page.one("body").send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the faces"
    page.one("#tab-make").send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element.get_attribute("id") == "tab-change"
    assert page.one("#view-change").is_displayed() and not page.one("#view-make").is_displayed()
    page.one("#tab-change").send_keys(Keys.ARROW_LEFT)
    page.settled("made")
    radio = page.one("#panel-wanted [aria-label='Male: any']")
    page.changes(lambda: radio.send_keys(Keys.ARROW_LEFT), "made")
    assert page.text("#chosen").startswith("no Male")
    page.changes(lambda: page.one("#guidance").send_keys(Keys.END), "made")
    assert page.text("#guidance-said") == "8.0"
    page.changes(lambda: Select(page.one("#model")).select_by_value("cgan"), "made")
    slider = page.one("#panel-wanted [aria-label='Intensity of Male']")
    page.changes(lambda: slider.send_keys(Keys.END), "made")
    assert "no Male 4" in page.text("#made-caption") and not page.one("#guiding").is_displayed()


@pytest.mark.parametrize("tab", ("make", "change", "compare"))
def test_controls_have_names_and_a_narrow_screen_is_enough(page, tab):
    page.open(tab, 360)
    page.until(page.quiet)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {"button", "radio", "slider", "checkbox", "combobox", "searchbox", "spinbutton", "tab", "tabpanel", "group",
             "link", "image", "textbox", "application", "region"}
    seen = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert {"tab", "radio", "searchbox"} <= {role for role, _ in seen}
    assert not [(role, name) for role, name in seen if role in named - {"group"} and not name.strip()]


def test_the_face_stays_in_sight_on_a_narrow_screen(page):
    page.open("make", 360, 500)
    page.settled("made")
    assert not page.one("#mini").is_displayed()
    page.driver.execute_script("document.querySelector('#panel-wanted fieldset').scrollIntoView()")
    page.until(lambda: page.one("#mini").is_displayed())
    assert page.source("mini") == page.source("made")


def test_dark_when_the_system_is(page):
    def brightness():
        colour = page.one("body").value_of_css_property("background-color")
        return sum(map(int, colour[colour.index("(") + 1:-1].split(",")[:3]))

    page.open("make")
    assert brightness() > 600
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    try:
        assert brightness() < 150
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_interface_page(page):
    page.driver.get(f"{page.url}/api")
    page.until(lambda: len(page("#operations section")) == 7)
    page.click("#operations section:nth-child(2) details:first-of-type summary")
    assert "temperature" in page.text("#operations section:nth-child(2) details:first-of-type pre")
    page.one("header a").click()
    page.until(lambda: page("#model option") and page.source("made"))


