"""How long the page's requests take: for one person who moves a slider, and for 20 at once.

    python -m benchmarks.web --run RUN [--data_dir DIR] [--clients 20] [--seconds 60] [--pictures docs/figures]

Starts the page as a process of its own on a free port. First one client asks for previews of the face at the noise's
mean, again and again, as the slider does. Then each of the clients does what a person does: six of ten requests move
the slider, two ask for eight samples, one changes a face and one has a face looked at; between two requests it waits
half a second, as long as a person who is quick. --pictures takes the page's pictures with Chromium first.
"""

import argparse
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np

PAUSE = 0.5


class Client:
    """A connection that stays open, as a browser's does."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        self.connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())


def start(run: str, data_dir: str) -> tuple[subprocess.Popen, int]:
    """Starts the page; returns its process and port."""
    process = subprocess.Popen([sys.executable, "-m", "cmma_jax", "web", "--run", run, "--port", "0",
                                "--runs_dir", "nowhere", *(["--data_dir", data_dir] if data_dir else [])],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise SystemExit("the page did not start")


def one_person(port: int, about: dict, seconds: float) -> np.ndarray:
    """Returns the seconds of each answer to a slider."""
    client, taken, end = Client(port), [], time.monotonic() + seconds
    names = [attribute["name"] for attribute in about["attributes"]]
    while time.monotonic() < end:
        began = time.perf_counter()
        status, _ = client.ask("POST", "/api/make", {"model": about["models"][0]["name"], "temperature": 0.0, "n": 1,
                                                     "attributes": {names[0]: random.uniform(0, 2), names[-1]: 1.0},
                                                     "preview": True})
        assert status == 200
        taken.append(time.perf_counter() - began)
    return np.array(taken)


def person(port: int, about: dict, number: int, end: float, answers: list[tuple[int, float]]) -> None:
    """Asks until the end; appends each answer's status and seconds."""
    rng, client, model = random.Random(number), Client(port), about["models"][0]["name"]
    names = [attribute["name"] for attribute in about["attributes"]]
    time.sleep(rng.uniform(0, PAUSE))
    while time.monotonic() < end:
        wanted, kind = {rng.choice(names): rng.uniform(0, 2)}, rng.random()
        path, body = "make", {"model": model, "attributes": wanted, "n": 1, "temperature": 0.0, "preview": True}
        if kind > 0.9:
            path, body = "look", {"model": model, "face": rng.randrange(about["faces"])}
        elif kind > 0.8:
            path, body = "edit", {"model": model, "face": rng.randrange(about["faces"]), "edits": [wanted]}
        elif kind > 0.6:
            body = {"model": model, "attributes": wanted, "n": 8, "seed": rng.randrange(1000), "temperature": 1.0}
        began = time.perf_counter()
        try:
            status, _ = client.ask("POST", f"/api/{path}", body)
        except (OSError, http.client.HTTPException, ValueError):
            status, client = 0, Client(port)
        answers.append((status, time.perf_counter() - began))
        time.sleep(PAUSE)


def take_pictures(port: int, folder: pathlib.Path) -> None:
    """Writes web-make.png, web-change.png and web-narrow.png, as Chromium shows them."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    choose = "for (const label of %s) document.querySelector(`#panel-%s [aria-label='${label}']`).click()"
    change = "document.querySelector('#picker button:nth-child(10)').click();"
    scenes = {"make": (1280, 860, "make", choose % (["Male: no", "Smiling: yes"], "wanted")),
              "change": (1280, 860, "change", change + choose % (["Smiling: yes"], "changes")),
              "narrow": (360, 780, "make", "")}
    for name, (width, height, tab, script) in scenes.items():
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height,
                                                                      "deviceScaleFactor": 1, "mobile": False})
        driver.get("about:blank")
        driver.get(f"http://127.0.0.1:{port}/#{tab}")
        time.sleep(4)
        driver.execute_script(script)
        time.sleep(4)
        driver.save_screenshot(str(folder / f"web-{name}.png"))
    driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="lfw", help="a finished run's folder, a file, or a name")
    parser.add_argument("--data_dir", default="", help="of the data set, for its test faces")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pictures", help="a folder for the page's pictures")
    options = parser.parse_args()
    process, port = start(options.run, options.data_dir)
    try:
        about = Client(port).ask("GET", "/api/about")[1]
        if options.pictures:
            take_pictures(port, pathlib.Path(options.pictures))
        one_person(port, about, 1)
        alone = 1e3 * one_person(port, about, 10)
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; one client, {len(alone)} slider moves: "
              f"p50 {np.median(alone):.1f} ms, p99 {np.quantile(alone, 0.99):.1f} ms")
        answers: list[tuple[int, float]] = []
        end = time.monotonic() + options.seconds
        people = [threading.Thread(target=person, args=(port, about, i, end, answers)) for i in range(options.clients)]
        for each in people:
            each.start()
        for each in people:
            each.join()
        taken = 1e3 * np.array([seconds for _, seconds in answers])
        wrong = [status for status, _ in answers if status != 200]
        print(f"{options.clients} clients for {options.seconds:.0f} s: {len(answers)} requests, {len(wrong)} not "
              f"answered with 200 {sorted(set(wrong)) or ''}; p50 {np.median(taken):.0f} ms, "
              f"p99 {np.quantile(taken, 0.99):.0f} ms, longest {np.max(taken):.0f} ms")
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
