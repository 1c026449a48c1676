"""Secrets that stand in addresses, headers and the environment, and the places where text leaves."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.build.planner import make_plan
from data_pipeline.build.unit_body import GivenBack
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.outside.console import Console
from data_pipeline.outside.redaction import errors_without_secrets, holds_secret, redacted
from data_pipeline.report.html import text
from data_pipeline.source.config import WrongRows
from data_pipeline.store.base import Retries, StoreError
from data_pipeline.store.open import open_store
from trainer.telemetry.journal import Journal

ROOT = Path(__file__).parents[2]
SECRET = "hunter2hunter2"
SIGNED = [
    *("?key=", "?jwt=", "?auth_token=", "?client_secret=", "?x-oss-signature=", "?sessionid=", "?hdnea=", "#token="),
    *("?X-Amz-Sign%61ture=", "?X-Amz-Signature=", "?x-amz-security-token=", "?X-Goog-Credential=", "?AWSAccessKeyId="),
    *(
        "?a=1&sig=",
        "?sv=2&se=3&sig=",
        "?Policy=",
        "?a=1&Key-Pair-Id=",
        "?hdnts=",
        "?hdntl=",
        "?__token__=",
        "?__gda__=",
    ),
    *("?q-ak=", "?q-signature=", "?auth_key=", "?wsSecret=", "?OSSAccessKeyId=", "?GoogleAccessId=", "?ticket="),
    *(
        "?access_token=",
        "#access_token=",
        "#id_token=",
        "?refresh_token=",
        "?api-key=",
        "?apikey=",
        "?subscription-key=",
    ),
    *(
        "?PHPSESSID=",
        ";jsessionid=",
        "?sid=",
        "?passwd=",
        "?pwd=",
        "?authorization=",
        "?bearer=",
        "?x-cos-security-token=",
    ),
    *("?%6bey=", "?to%6Ben=", "?t%256fken=", "?next=https%3A%2F%2Fh%2Fx%3FX-Amz-Signature%3D", "?TOKEN=", "?a;sig="),
    *("?token[]=", "?token[0]=", "?a=1&api_key[x]=", "?md5=", "?hash=", "?e=4102444800&md5="),
]
SIGNED_WITH_A_DATE = ("?md5=", "?hash=")
"""Alone they are the digest of a file."""
HARMLESS = ["?id=3", "?t=12", "?quality=hd&page=2", "?keyword=cats", "?v=a%20b", "#t=10", "?author=me", "?width=640"]
URL = "https://host/video.mp4"


@pytest.mark.parametrize("query", SIGNED)
def test_a_signed_address_is_no_row_and_no_text(query: str) -> None:
    assert holds_secret(f"{URL}{query}{SECRET}{'&expires=1' if query in SIGNED_WITH_A_DATE else ''}")
    shown = redacted(f"GET {URL}{query}{SECRET}&x=1 failed")
    assert SECRET not in shown
    assert shown.startswith("GET https://host/video.mp4")
    assert shown.endswith(" failed")


@pytest.mark.parametrize("query", HARMLESS)
def test_a_plain_address_stays_as_it_is(query: str) -> None:
    assert not holds_secret(URL + query)
    assert redacted(URL + query) == URL + query


def test_rows_with_secrets_get_into_no_file_of_the_dataset(tmp_path: Path) -> None:
    """In the address, in the id, in the label, and in a further column."""
    output = tmp_path / "out"
    with (tmp_path / "m.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "caption", "id", "label", "link"])
        for number, query in enumerate(SIGNED):
            secret = f"{URL}{query}{SECRET}{'&Expires=4102444800' if query in SIGNED_WITH_A_DATE else ''}"
            place = number % 4
            row = [URL, "words", f"row {number}", "l", ""]
            row[(0, 2, 3, 4)[place]] = secret
            table.writerow(row)
        table.writerow([f"https://user:{SECRET}@host/v.mp4", "words", "user", "l", ""])
        table.writerow([f"https://user%3A{SECRET}%40host/v.mp4", "words", "plain", "l", ""])
        table.writerows([URL + query, "words", f"good {query}", "l", query] for query in HARMLESS)
    config = ShardsConfig(source=str(tmp_path / "m.csv"), output=str(output), rows=WrongRows.RECORD)
    make_plan(config, "test", open_store(output))
    (part,) = output.glob("plan/**/*.parquet")
    rows = pq.read_table(part).to_pylist()
    assert [row["problem"] == "" for row in rows[-len(HARMLESS) :]] == [True] * len(HARMLESS)
    assert all(row["problem"] for row in rows[: len(SIGNED) + 1])
    assert SECRET not in str(rows[: len(SIGNED) + 1])
    with pytest.raises(ValueError, match="a URL with credentials or a signature") as refused:
        make_plan(ShardsConfig(source=config.source, output=str(tmp_path / "o2")), "test", open_store(tmp_path / "o2"))
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        "Could not connect to http://user:{}@127.0.0.1:9/b?x=1",
        'endpoint "https://AKIA:{}@host:9000"',
        "s3://AKIA:{}@bucket/key",
        "http://{}@host/",
        "http://user:p@{}@host/x",
        "Authorization: Bearer {}",
        "'Authorization': 'Basic {}'",
        "Proxy-Authorization=Basic {}",
        "Authorization: AWS AKIA:{}",
        "{{'Authorization': 'ApiKey {}'}}",
        "Cookie: session={}",
        "set-cookie: sid={}; path=/",
        "X-Api-Key: {}",
        "{{'x-amz-security-token': '{}'}}",
        "curl -H 'bearer {}'",
        "(https://h/a?token={})",
        '{{"url": "https://h/a?x=1&token={}"}}',
        "<a href=https://h/a?token={}>",
        "https://h/a?code={}&x=1",
        "https://h/a?x=1&hash={}",
        "https://h/a?password=a?{}",
        "//user:{}@host/x",
        "mount '//user:{}@host/x' failed",
        "password={}",
        "passwd = '{}'",
        "db-password={}, port=3",
        '{{"password": "{}"}}',
        "aws_secret_access_key = {}",
        "aws_secret_access_key: {}",
        "aws_session_token={}",
        "AccountKey={};EndpointSuffix=x",
        "client_secret='{}'",
        "export API_KEY={}",
        "token={}",
    ],
)
def test_a_secret_in_words_of_others_is_hidden(words: str) -> None:
    assert SECRET not in redacted(words.format(SECRET))


def test_values_of_the_environment_are_hidden_in_every_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = "/abc+DEF/ghi=jkl mno"
    for name in ("AWS_SECRET_ACCESS_KEY", "MY_API_TOKEN", "DB_PASSWORD", "WANDB_API_KEY"):
        with monkeypatch.context() as patched:
            patched.setenv(name, key)
            for form in (key, quote(key), quote(key, safe="")):
                assert redacted(f"before {form} behind") == "before *** behind"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@host")
    assert SECRET not in redacted(f"password {SECRET} is wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    assert redacted(f"file {tmp_path}") == f"file {tmp_path}", "a path is no secret"
    monkeypatch.setenv("TOKEN", "short")
    assert redacted("a short word") == "a short word"


def test_text_without_secrets_is_not_touched() -> None:
    for words in (
        "sources.headers={Authorization: MY_TOKEN}",
        "user@host:/path",
        "a?b",
        "100% of 3 = 3",
        "50%25 key=1",
        "code=red",
        "a man shows the code=red; hash=3 and md5=5 are on the wall",
        "the secret: a film; password: the user's own",
        "tokens=512, token=3, token=3.5",
        "data.texts_key=value, key=value",
        "https://host/v.mp4?color=red&passage=3",
        "// a comment: mail me@host",
        "pass=1 of 2, sign=plus",
        "?code=red",
    ):
        assert redacted(words) == words


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    ["?token", "a.", "x-", "authorization", "bearer ", "?", " ", "//:", "password ", "%41", "&a=", "secret_", "://a@"],
)
def test_a_text_of_many_characters_is_searched_in_a_time_that_grows_as_it_does(piece: str) -> None:
    """A search that takes the square of the length needs days for 16 MB. What is around it lets every search run."""
    long = f"://=%41{piece * (10**5 // len(piece))}=%41"
    redacted(long)
    holds_secret(long)


def test_the_console_hides_what_libraries_print() -> None:
    """The whole of a traceback, causes too."""
    console = io.StringIO()
    stream = Console(console)
    try:
        try:
            raise OSError(f"http://user:{SECRET}@host is away")
        except OSError as error:
            raise ValueError("no store") from error
    except ValueError:
        traceback.print_exc(file=stream)  # type: ignore[arg-type]
    print("a", f"https://h/?token={SECRET}", file=stream)  # type: ignore[call-overload]
    stream.writelines([f"https://h/?sig={SECRET}\n"])
    assert SECRET not in console.getvalue()
    assert "no store" in console.getvalue()


class Odd(Exception):
    """An error whose text is no argument."""

    def __init__(self, url: str, code: int) -> None:
        self.url, self.code = url, code

    def __str__(self) -> str:
        return f"{self.code} of {self.url}"


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (StoreError(f"http://u:{SECRET}@h: away"), StoreError),
        (GivenBack(f"http://u:{SECRET}@h: away", "node-3"), GivenBack),
        (OSError(5, f"http://u:{SECRET}@h"), RuntimeError),
        (Odd(f"http://u:{SECRET}@h", 3), RuntimeError),
        (KeyError(f"http://u:{SECRET}@h"), KeyError),
    ],
)
def test_an_error_of_a_worker_loses_its_secrets_and_keeps_its_kind(raised: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind) as found, errors_without_secrets():
        raise raised
    whole = "".join(traceback.format_exception(found.value))
    assert SECRET not in whole
    assert SECRET not in str(found.value)
    assert getattr(found.value, "host", "node-3") == "node-3"


def fail(cause: str) -> None:
    """An error of the store with a cause."""
    try:
        raise OSError(cause)
    except OSError as error:
        raise StoreError("the store is away") from error


def test_a_cause_of_a_workers_error_is_hidden_too() -> None:
    with pytest.raises(StoreError, match="the store is away") as found, errors_without_secrets():
        fail(f"http://u:{SECRET}@h")
    assert SECRET not in "".join(traceback.format_exception(found.value))


def test_an_error_without_secrets_passes_with_its_causes() -> None:
    with pytest.raises(StoreError, match="the store is away") as found, errors_without_secrets():
        fail("cause")
    assert isinstance(found.value.__cause__, OSError)


def test_ledger_journal_and_pages_hold_no_secret(tmp_path: Path) -> None:
    row = PlanRow(row=1, id="a", video="a.mp4", caption="c", start=None, end=None, label="", split="", extra="")
    fate = RowFate.quarantined(row, "unreachable", f"failed at http://u:{SECRET}@h/x?token={SECRET}")
    assert SECRET not in json.dumps(fate.to_json())
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"step": 1, "error": f"http://u:{SECRET}@h"})
    assert SECRET not in journal.path.read_text()
    assert SECRET not in text(f"http://u:{SECRET}@h")


def test_the_password_of_an_endpoint_is_in_no_output(tmp_path: Path) -> None:
    """Build from and to a store that is away, and verify one: each command as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": f"key{SECRET}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://user:{SECRET}@127.0.0.1:9",
    }
    (tmp_path / "m.csv").write_text("video,caption\ns3://b/x.mp4,hello\n")
    ended = subprocess.run(
        [
            *(sys.executable, "launch/build_shards.py", "--config", "configs/shards/base.yaml"),
            *("--source", "s3://b/m.csv", "--output", str(tmp_path / "out"), "sources.attempts=1"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert SECRET not in ended.stdout + ended.stderr
    assert "s3://b/m.csv: failed 1 times, last: Could not connect" in ended.stderr
    for name, value in environment.items():
        if name.startswith("AWS_"):
            os.environ[name] = value
    try:
        with pytest.raises(StoreError, match="Could not connect") as found:
            open_store("s3://b/out", Retries(1, 5.0)).read("x")
    finally:
        for name in environment:
            if name.startswith("AWS_"):
                del os.environ[name]
    assert SECRET not in str(found.value)


def test_a_secret_in_base64_of_a_header_is_hidden() -> None:
    coded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert coded not in redacted(f"sent Authorization: Basic {coded}")
