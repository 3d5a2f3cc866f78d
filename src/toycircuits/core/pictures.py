"""Write figures as interactive JSON and as static pictures, which Chrome draws through Kaleido."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import psutil

from toycircuits.core.plotting import HEIGHT, SCALE, WIDTH
from toycircuits.core.replace import replacing

STUCK_AFTER = 120.0  # seconds without a new picture; one takes half a second, a start of Chrome ten


def write_figures(
    figures: Mapping[str, go.Figure], json_folder: Path, png_folder: Path, known: Path
) -> None:
    """Write every figure as JSON (interactive) and PNG (static).

    Chrome draws the PNGs. Without it, the function writes the JSON only, and a line on standard
    error says how to get the pictures.

    Args:
        known: folder of the pictures that were last drawn here. Their names are hashes of the
            figure and of the programs that drew it (not of the fonts). Pictures of unchanged
            figures are copied from it, because Chrome takes half a second for each.
    """
    for folder in (json_folder, png_folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    known.mkdir(parents=True, exist_ok=True)
    drawing_with = _versions()
    known_as, to_draw = {}, []
    for order, (name, figure) in enumerate(figures.items()):
        text = figure.update_layout(meta={"order": order}).to_json()
        (json_folder / f"{name}.json").write_text(text, encoding="utf-8")
        picture = png_folder / f"{name}.png"
        known_as[picture] = known / f"{_digest(text, *drawing_with)}.png"
        if _is_whole(known_as[picture]):
            shutil.copyfile(known_as[picture], picture)
        else:
            to_draw.append((figure, picture))
    try:
        if to_draw:
            _draw(to_draw)
        if empty := [picture.name for _, picture in to_draw if not _is_whole(picture)]:
            raise RuntimeError(f"the browser left no picture of {', '.join(empty)}")
    except Exception as error:  # Kaleido's and Chrome's failures share no narrower class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        for _, picture in to_draw:
            if not _is_whole(picture):
                picture.unlink(missing_ok=True)  # Kaleido creates an empty file first
        note = f"pictures not drawn: {reason}"
        (png_folder / "NOT_DRAWN.txt").write_text(note + "\n", encoding="utf-8")
        hint = "install Chrome or Chromium, then `dvc repro --force` this stage"
        print(f"warning: {note}; {hint}; tables and interactive figures are safe", file=sys.stderr)
        return
    for old in {*known.iterdir()} - {*known_as.values()}:
        old.unlink()
    for _, picture in to_draw:
        with replacing(known_as[picture]) as partial:
            shutil.copyfile(picture, partial)


def _draw(figures: Sequence[tuple[go.Figure, Path]]) -> None:
    """Draw each figure to its path, at the size it has."""
    draw_pictures(
        [
            {
                "fig": figure,
                "path": path,
                "opts": {
                    "width": figure.layout.width or WIDTH,
                    "height": figure.layout.height or HEIGHT,
                    "scale": SCALE,
                },
            }
            for figure, path in figures
        ]
    )


def draw_pictures(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Let Kaleido draw `jobs` with one start of Chrome, which costs as much as ten pictures.

    On a busy machine Chrome may fail to answer its first message, and Kaleido then waits for ever.
    Therefore a Chrome that makes no new picture for `STUCK_AFTER` seconds is killed and started
    again, once.

    MathJax is off, because Kaleido would ask a server for it before each picture. Plotly's own HTML
    tags can set all mathematics in the labels.

    Args:
        jobs: `fig`, `path` and `opts` of each picture, as `kaleido.write_fig_from_object` has them.

    Raises:
        Exception: of whatever class Kaleido raises; pictures drawn before it stay.
    """
    import kaleido

    paths: list[Path] = [job["path"] for job in jobs]
    for last in (False, True):
        left = [job for job in jobs if not is_drawn(job["path"])]
        with _ending_what_is_stuck(paths) as stuck:
            try:
                kaleido.write_fig_from_object_sync(
                    left, cancel_on_error=True, kopts={"mathjax": False}
                )
                return
            except Exception:
                if last or not stuck.is_set():
                    raise


@contextmanager
def _ending_what_is_stuck(paths: Sequence[Path]) -> Iterator[threading.Event]:
    """While the body runs, kill the processes that it started if no new picture appears.

    Yields:
        An event that is set if this happened.
    """
    done, stuck = threading.Event(), threading.Event()
    before = {*psutil.Process().children(recursive=True)}

    def watch() -> None:
        drawn, since = 0, time.monotonic()
        while not done.wait(min(1, STUCK_AFTER / 4)):
            if (now := sum(map(is_drawn, paths))) != drawn:
                drawn, since = now, time.monotonic()
            elif time.monotonic() - since > STUCK_AFTER:
                stuck.set()
                for process in {*psutil.Process().children(recursive=True)} - before:
                    with suppress(psutil.Error):
                        process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stuck
    finally:
        done.set()
        watcher.join()


def is_drawn(picture: Path) -> bool:
    """Whether Kaleido has drawn `picture`."""
    return picture.exists() and picture.stat().st_size > 0  # Kaleido creates an empty file first


def _is_whole(picture: Path) -> bool:
    """Whether `picture` is a PNG that was written to its end."""
    content = picture.read_bytes() if picture.exists() else b""
    return content.startswith(b"\x89PNG\r\n") and content.endswith(b"IEND\xaeB`\x82")


def find_browser() -> str:
    """Path of the Chrome or Chromium that Kaleido will draw with; "" if there is none."""
    from choreographer.browsers.chromium import Chromium

    return os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False) or ""


def _versions() -> list[str]:
    """What else decides the look of a figure: this code, the libraries and the browser."""
    browser = find_browser()
    state = Path(browser).stat() if Path(browser).is_file() else None
    try:  # a launcher's file may stay the same when the browser that it starts is upgraded
        done = subprocess.run([browser, "--version"], capture_output=True, timeout=20, check=False)
        version = done.stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        version = ""
    libraries = [f"{name} {metadata.version(name)}" for name in ("kaleido", "plotly")]
    built = [str(state.st_size), str(state.st_mtime_ns)] if state else []
    return [Path(__file__).read_text("utf-8"), *libraries, browser, version, *built]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
