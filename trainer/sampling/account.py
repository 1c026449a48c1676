"""The account of a folder: a JSON file that says by which settings its files were made, so that others are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import read_json
from data_pipeline.store.files import atomic_file


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of all files of one kind in a folder.

    Attributes:
        name: file name of the account.
        ending: ending of the names of the files.
        what: what the files are, for messages.
    """

    name: str
    ending: str
    what: str

    def files(self, folder: Path) -> list[Path]:
        """What was made, in the order of the names; files that are being written have names that begin with a dot."""
        return sorted(file for file in folder.glob(f"*{self.ending}") if not file.name.startswith("."))

    def read(self, folder: Path, keys: Iterable[str]) -> dict[str, Any]:
        """The settings.

        Args:
            keys: settings that the account must have.
        Raises:
            ValueError: it is damaged, or a key is missing; the message names the file and the remedy.
            OSError: it cannot be read.
        """
        file = folder / self.name
        remedy = f"remove it and the {self.what} beside it, and run launch/sample.py again"
        try:
            settings = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error}; {remedy}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{file} must be keys with values; {remedy}")
        if missing := [key for key in keys if key not in settings]:
            raise ValueError(f"{file} does not say how the {self.what} were made: it has no {missing[0]}; {remedy}")
        return settings

    def check(self, folder: Path, now: Mapping[str, Any]) -> None:
        """Refuse a folder that holds files of other settings; nothing is written.

        Args:
            folder: it may be missing. An account without any file beside it binds nobody.
            now: the settings, as JSON keeps them.
        Raises:
            ValueError: naming the settings that differ, or as `read`.
        """
        if not self.files(folder):
            return
        if not (folder / self.name).exists():
            raise ValueError(
                f"--output {folder} holds {self.what} and no {self.name}, which says how they were made; choose another"
            )
        then = self.read(folder, now)
        if differ := [f"{key}: {then[key]} -> {now[key]}" for key in now if then[key] != now[key]]:
            raise ValueError(
                f"--output {folder} holds {self.what} of other settings ({'; '.join(differ)}); choose another"
            )

    def begin(self, folder: Path, now: Mapping[str, Any]) -> None:
        """`check`, and write the account where no file binds it yet; the folder is made. Raises: also StoreError."""
        self.check(folder, now)
        if not self.files(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.write(folder, now)

    def write(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Write the account, whole or not at all. Raises: StoreError for a full disk."""
        with atomic_file(folder / self.name) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
