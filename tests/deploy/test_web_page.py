"""The page for browsers, in Chromium: the predictor's classes, from files, pastes, drops and a camera."""

import base64
import functools
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images
from tests.deploy.conftest import Exported
from tests.helpers.chromium import chromium, until

from tutelage.core.errors import TutelageError
from tutelage.data.input_spec import CROP_MODES, FILTERS, InputSpec, _center, _resized, normalised
from tutelage.deploy.manifest import Manifest
from tutelage.deploy.predictor import Predictor
from tutelage.deploy.web.folder import write_folder
from tutelage.deploy.web.runtime import web_runtime

TEMPLE, FLOWER = (Image.fromarray(pixels) for pixels in load_sample_images().images)
CLOSE = 1e-2  # between probabilities of the page and of the predictor


def on_its_side(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    FLOWER.save(path, exif=exif)


def see_through(path: Path) -> None:
    image = TEMPLE.crop((100, 50, 400, 300))
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


PHOTOGRAPHS: dict[str, Callable[[Path], object]] = {
    "temple.jpg": TEMPLE.save,
    "flower.png": FLOWER.save,
    "exif.jpg": on_its_side,
    "alpha.png": see_through,
    "grey.jpg": lambda path: TEMPLE.convert("L").save(path),
    "palette.gif": lambda path: FLOWER.crop((150, 50, 500, 400)).convert("P").save(path),
    "lossless.webp": lambda path: TEMPLE.crop((0, 100, 640, 300)).save(path, lossless=True),
    "tall.png": lambda path: FLOWER.crop((250, 0, 300, 427)).save(path),
    "small.png": lambda path: TEMPLE.resize((19, 13)).save(path),
    "large.jpg": lambda path: TEMPLE.resize((4200, 2800)).save(path, quality=60),  # is read in several bands
}


class Quiet(SimpleHTTPRequestHandler):
    """As `python -m http.server`, without its log."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, two folders below the root of its server."""
    try:
        runtime = web_runtime(["onnx"])
    except TutelageError as error:
        pytest.skip(f"the page's runtime is not here: {error}")
    place = tmp_path_factory.mktemp("served") / "some where" / "page"
    write_folder(place, exported.path / "model.onnx", Manifest.read(exported.path), runtime)
    return place


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder.parents[1]))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/some%20where/page/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as browser:
        yield browser


Opens = Callable[..., Any]


@pytest.fixture
def opens(browser: Any) -> Iterator[Opens]:
    """To open the page; it must not complain, nor fetch anything from elsewhere."""
    complaints: list[str] = []
    contexts = []

    def open_page(address: str, width: int = 1280) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, permissions=["camera"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine is slow, not wrong
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (address.removesuffix("index.html"), "data:")
        page.on("request", lambda sent: sent.url.startswith(own) or complaints.append(sent.url))
        page.goto(address)
        until(page, "!document.getElementById('drop').hidden || !document.getElementById('notice').hidden")
        until(page, "!document.getElementById('notice').textContent.startsWith('Loading')", 60)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def rows(page: Any, count: int) -> list[list[tuple[str, float]]]:
    """The classes and probabilities of each result; none for an error."""
    until(page, f"document.querySelectorAll('#results .took, #results .error').length === {count}", 60)
    found = []
    for row in page.query_selector_all("#results > li"):
        classes = [term.text_content() for term in row.query_selector_all("dt")]
        shares = [float(share.text_content().rstrip("%")) / 100 for share in row.query_selector_all("dd")]
        found.append(list(zip(classes, shares, strict=True)))
    return found


def says(predictor: Predictor, photograph: Path | Image.Image) -> list[tuple[str, float]]:
    (found,) = predictor(photograph)
    return [(guess.label, pytest.approx(guess.probability, abs=CLOSE)) for guess in found.guesses]


@pytest.fixture(scope="module")
def predictor(exported: Exported) -> Predictor:
    return Predictor(exported.path, runtime="onnxruntime", precision="fp32")


def test_ten_photographs_get_the_predictors_classes(
    opens: Opens, address: str, predictor: Predictor, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in PHOTOGRAPHS]
    for file in files:
        PHOTOGRAPHS[file.name](file)
    page = opens(address)
    page.set_input_files("#files", [str(file) for file in files])
    assert rows(page, 10) == [says(predictor, file) for file in files]
    took = page.query_selector("#results .took").text_content()
    assert took.count(" ms ") == 2
    assert page.title().startswith("test_efficientnet")
    size = (predictor.file.stat().st_size) / 1e6
    assert (
        f"float32, {size:.1f} MB, 10 classes, 32 × 32 pixels" in page.query_selector("header").text_content()
    )


def test_the_temperature_divides_the_logits(
    opens: Opens, address: str, folder: Path, exported: Exported, tmp_path: Path
) -> None:
    manifest = Manifest.read(folder)
    replace(manifest, temperature=3.0).write(folder)
    replace(manifest, temperature=3.0).write(tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    try:
        page = opens(address)
        TEMPLE.save(tmp_path / "temple.jpg")
        page.set_input_files("#files", str(tmp_path / "temple.jpg"))
        assert rows(page, 1) == [says(Predictor(tmp_path), tmp_path / "temple.jpg")]
    finally:
        manifest.write(folder)


def rows_first(image: Image.Image, spec: InputSpec) -> np.ndarray:
    """`eval_pixels` with Pillow's passes in the order of the page, which Pillow 13 changes for some sizes."""
    width, height = _resized(image.size, spec)
    if spec.interpolation != "nearest":
        image = image.resize((width, image.height), FILTERS[spec.interpolation])
    return np.asarray(_center(image.resize((width, height), FILTERS[spec.interpolation]), spec))


SIZES = ((91, 37), (40, 64), (20, 9), (1000, 30), (33, 33), (128, 129))


@pytest.mark.parametrize("mode", CROP_MODES)
def test_pixels_are_those_of_pillow(opens: Opens, address: str, mode: str) -> None:
    page = opens(address)
    for filter_ in FILTERS:
        for number, (width, height) in enumerate(SIZES):
            crop_pct = (0.875, 0.7, 1.3)[number % 3]
            spec = InputSpec(
                32, (32, 40)[number % 2], crop_pct=crop_pct, interpolation=filter_, crop_mode=mode
            )
            image = Image.fromarray(
                np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            )
            rgba = base64.b64encode(image.convert("RGBA").tobytes()).decode()
            found = page.evaluate(
                """([text, width, height, spec]) => {
                    const all = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
                    const rows = (top, count) => all.subarray(4 * width * top, 4 * width * (top + count));
                    const pixels = evalPixels({ width, height, rows }, spec);
                    return [[...pixels], [...normalised(pixels, spec)]];
                }""",
                [rgba, width, height, spec.to_dict()],
            )
            truth = rows_first(image, spec)
            pixels = np.array(found[0], np.uint8).reshape(truth.shape)
            np.testing.assert_array_equal(pixels, truth, f"{filter_} {width}x{height}")
            np.testing.assert_allclose(
                np.array(found[1]).reshape(3, *truth.shape[:2]), normalised(pixels, spec), atol=1e-6
            )


def test_a_broken_image_is_named_and_the_next_one_is_classified(
    opens: Opens, address: str, predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photograph")
    TEMPLE.save(tmp_path / "temple.jpg")
    page = opens(address)
    page.set_input_files("#files", [str(tmp_path / name) for name in ("broken.jpg", "temple.jpg")])
    assert rows(page, 2) == [[], says(predictor, tmp_path / "temple.jpg")]
    first = page.query_selector("#results > li").text_content()
    assert first == (
        "broken.jpgThis file is damaged or is not an image that this browser can read; use JPEG, PNG or WebP."
    )


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_photographs_are_pasted_and_dropped(
    opens: Opens, address: str, predictor: Predictor, kind: str
) -> None:
    page = opens(address)
    stream = io.BytesIO()
    FLOWER.save(stream, "PNG")
    page.evaluate(
        """([kind, text]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            data.items.add(new File([bytes], "flower.png", { type: "image/png" }));
            const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
              : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [kind, base64.b64encode(stream.getvalue()).decode()],
    )
    assert rows(page, 1) == [says(predictor, FLOWER)]


def test_the_camera_is_classified_until_it_is_stopped(opens: Opens, address: str) -> None:
    page = opens(address)
    page.click("#camera")
    until(page, "document.querySelector('#live .took') !== null", 60)
    assert len(page.query_selector_all("#live dt")) == 5
    page.evaluate("window.tracks = document.getElementById('video').srcObject.getTracks()")
    page.click("#camera")
    assert page.query_selector("#camera").text_content() == "Use the camera"
    assert page.evaluate("window.tracks.every((track) => track.readyState === 'ended')")
    assert not page.is_visible("#live")


def test_from_disk_it_says_that_it_must_be_served(opens: Opens, folder: Path) -> None:
    page = opens((folder / "index.html").as_uri())
    assert page.query_selector("#notice").text_content() == (
        "A browser does not let a page that is opened from disk read the files beside it, so this page must be "
        "served: run python -m http.server in its folder, and open http://localhost:8000."
    )
    assert not page.is_visible("#drop")


def test_it_fits_a_phone(opens: Opens, address: str, tmp_path: Path) -> None:
    name = "a-long-name-of-a-photograph-without-a-space-" + "0123456789" * 6 + ".jpg"
    TEMPLE.save(tmp_path / name)
    page = opens(address, width=390)
    page.set_input_files("#files", str(tmp_path / name))
    rows(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
