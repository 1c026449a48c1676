"""What the documents point to is there: pages, headings, and files of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("launch/**/*.md")])
FOLDERS = ("configs", "data_pipeline", "docs", "launch", "model", "tests", "trainer", ".ci")


def anchors(document: Path) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    text = re.sub(r"(?ms)^```.*?^```", "", document.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_pages_and_headings(document: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        page = (document.parent / place) if place else document
        if not page.exists() or (anchor and anchor not in anchors(page)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*\w", document.read_text())
    named = [name for name in named if "SCRIPT" not in name]  # which stands for any of them
    wrong = [name for name in named if not list(ROOT.glob(name)) and not list(ROOT.glob(f"{name}.py"))]
    assert not wrong


def test_every_page_can_be_found_from_the_readme() -> None:
    found, waiting = {ROOT / "README.md"}, [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        for place in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            other = (page.parent / place).resolve()
            if "://" not in place and other not in found:
                found.add(other)
                waiting.append(other)
    assert set(ROOT.glob("docs/*.md")) <= found
