"""Names of files that look the same and differ in their bytes: `é` as one character (NFC) or as two (NFD).

Names are never changed. Where a file is not there under the name that a manifest gives, its twin may be.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def same_name(name: str) -> str:
    """A form that twins share; for comparing only."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def existing(path: Path) -> Path:
    """The path itself, or, where nothing is there, the existing path whose parts are its twins, if there is one."""
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        forms = dict.fromkeys([part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))])
        found = next((found / form for form in forms if os.path.lexists(found / form)), found / part)
    return found if os.path.lexists(found) else path
