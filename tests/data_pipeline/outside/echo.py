"""A child process that sends back what it gets, with a word of its settings and as many bytes as it is told."""

from __future__ import annotations

import os

from data_pipeline.outside.child import Connection, run_child


def _serve(connection: Connection) -> None:
    connection.send({})
    while request := connection.receive():
        data = connection.read(request["bytes"])
        answer = {
            "word": connection.settings["word"],
            "variable": os.environ.get("ECHO"),
            "bytes": request["announced"],
        }
        connection.send(answer, data)


if __name__ == "__main__":
    run_child(_serve)
