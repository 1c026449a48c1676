"""JSON and YAML of strangers: data, bounded, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.outside.documents import MOST_YAML, check_depth, parse_json, parse_yaml, read_json_object, read_yaml

BOMB = "a0: &a0 [x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 1 holds an anchor or an alias"),
        ("a: " + "[" * 5000 + "]" * 5000, r"line 1: exceeded maximum nesting depth|line 1 is nested more"),
        ("a: " + "[" * 70 + "]" * 70, "line 1 is nested more than 64 deep"),
        ("a:\n  b: !!python/object/apply:os.system [id]", "line 2 holds the tag .*python/object/apply:os.system"),
        ("a: !!binary aGk=", "holds the tag"),
        ("a: {b: ['${oc.env:HOME}']}", r"a\.b\.0 holds \$\{\.\.\.\}"),
        ("${oc.env:HOME}: 1", "a key of the file holds"),
        ("a: [1", r"line \d: "),
        ("a: 1\n---\nb: 2", "line 2: "),
        ("a: " + "x" * MOST_YAML, "more than 262144 characters"),
        ("a: \x00", "."),
    ],
)
def test_yaml_that_is_more_than_data_is_refused(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "A-SECRET")
    with pytest.raises(ValueError, match=message) as refused:
        parse_yaml(text)
    assert "A-SECRET" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_yaml_that_is_data_is_read() -> None:
    assert parse_yaml("model: {width: 32, heads: [1, 2.5, null, true, 'x']}") == {
        "model": {"width": 32, "heads": [1, 2.5, None, True, "x"]}
    }
    check_depth("a: &x 1\nb: *x")  # a user's own configuration may have aliases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('{"a": 1e999}', "beyond the numbers"),
        ('{"a": [-1e999]}', "holds -1e999, which is beyond the numbers"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        (b'{"a": "\xff"}', "UTF-8 at byte 7"),
        ("{", "Expecting"),
    ],
)
def test_json_that_no_reader_expects_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ValueError, match=r"a\.yaml is not a YAML file: line 2 holds the byte 0xff"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"a\.json must be a JSON object, and is a list"):
        read_json_object(tmp_path / "a.json")
