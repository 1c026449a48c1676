"""What a real browser makes of a page of ours: headless Chromium, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
# A page around the page: it waits until all is loaded, clicks on what lies at the middle of each element that is to be
# clicked, as a mouse does, and says what is there.
WITNESS = """<!DOCTYPE html><body><iframe src="{name}" width="1280" height="900"></iframe><pre id="out"></pre><script>
onload = () => {{
  const view = frames[0], page = view.document, images = [...page.images];
  for (const selector of {clicks}) {{
    const element = page.querySelector(selector);
    element.scrollIntoView();
    const box = element.getBoundingClientRect();
    page.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2).click();
  }}
  document.getElementById("out").textContent = JSON.stringify({{
    title: page.title, images: images.length, drawn: images.filter(i => i.complete && i.naturalWidth > 0).length,
    videos: page.querySelectorAll("video").length,
    moving: [...page.querySelectorAll("video")].filter(v => v.readyState >= 2 && v.videoWidth > 0).length,
    fetched: view.performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    width: page.documentElement.scrollWidth, height: page.documentElement.scrollHeight,
    rows: [...page.querySelectorAll(".sortable .o")].map(e => [e.getBoundingClientRect().top, e.innerText]),
    scripts: page.scripts.length, links: page.links.length, text: page.body.innerText,
  }});
}};
</script></body>"""


def program() -> str:
    """The browser's path, or "" when there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


def look_at(page: Path, clicks: Sequence[str] = ()) -> dict[str, Any]:
    """Load a page in a window 1280 pixels wide; leaves `witness.html` beside it.

    Args:
        clicks: CSS selectors of the elements that are clicked first, one after another.
    Returns:
        title, images and how many of them were drawn, videos and how many of them show a frame,
        `fetched` addresses, width and height in pixels, numbers of
        scripts and links, `rows` (the top and the text of each cell that can be sorted), visible text, and `console`:
        what the page said there.
    """
    witness = page.with_name("witness.html")
    witness.write_text(WITNESS.format(name=page.name, clicks=json.dumps(list(clicks))))
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    words += ["--enable-logging=stderr", f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", witness.as_uri()]
    done = subprocess.run([program(), *words], capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return seen
