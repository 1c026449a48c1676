"""The page of generated clips, where there are more classes than a table of all pairs can show."""

from __future__ import annotations

import re
from typing import Any

from launch.generation_page import MOST_CLASSES, generation_page


def test_of_many_classes_the_most_frequent_mistakes_are_shown_largest_first() -> None:
    """Class n is taken for its neighbour n times; the first of the list of classes are the rarest mistakes."""
    many = MOST_CLASSES + 5
    confusion = {f"c{n:02d}": {f"c{n:02d}": 100, f"c{(n + 1) % many:02d}": n + 1} for n in range(many)}
    entry = {"of": "generated clips", "judge": "a judge", "value": 0.5, "chance": 0.04, "confusion": confusion}
    spread = {"count": 2, "least": 1.0, "quantile_05": 1.0, "median": 1.0}
    near = {"distance": "d", "training_latents": 1, "samples": spread, "held_out": None, "as_near_as_05": None}
    report: dict[str, Any] = {
        "metrics": {},
        "class_agreement": [entry],
        "memorisation": near | {"nearest": []},
        "not_computed": {},
        "remarks": [],
        "unreadable": {},
    }
    page = generation_page(report, [], [])
    rows = re.findall(r"<tr><td[^>]*>(c\d\d)</td><td[^>]*>(c\d\d)</td><td[^>]*>(\d+)</td></tr>", page)
    wanted = [(f"c{n:02d}", f"c{(n + 1) % many:02d}", str(n + 1)) for n in range(many - 1, many - 1 - MOST_CLASSES, -1)]
    assert rows == wanted
