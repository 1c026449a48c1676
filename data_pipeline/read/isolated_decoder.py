"""`ViewDecoder` in a child process: a decoder that crashes or hangs costs one clip, and decodes beside the parent.

The child serves one clip after another and is replaced after a crash. The bytes of the clip go to it over the
connection, and the square that is asked for comes back. Layouts: T frames, S side of the result.
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from fractions import Fraction

import numpy as np

from data_pipeline.dataset.tar import ClipError
from data_pipeline.outside.child import Connection, OneChild, Program, run_child
from data_pipeline.read.clip_decoder import Uint8Array, View, ViewDecoder

SILENT_S = 600.0
"""Seconds that one clip may take, after which the decoder counts as hung."""


_CLIPS = 1024
"""Clips that one child decodes. Another one takes its place then, or where it has ended between two clips."""


class IsolatedViewDecoder:
    """Decodes views as `ViewDecoder` does, in a child process for each thread that calls it.

    Args:
        fps: frames a second of the clips, as dataset.json has it.
    """

    def __init__(self, fps: Fraction) -> None:
        self._fps = fps
        self._children = threading.local()
        self._every: list[OneChild] = []

    @property
    def _one(self) -> OneChild:
        """The child of this thread."""
        if not hasattr(self._children, "one"):
            self._children.one = OneChild(self._program, _CLIPS)
            self._every.append(self._children.one)
        one: OneChild = self._children.one
        return one

    def _program(self) -> Program:
        return Program(
            module="data_pipeline.read.isolated_decoder",
            named="the decoder's process",
            settings={"fps": str(self._fps)},
            environment={"OMP_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int | None:
        """The process id of the child of this thread; None while no child runs."""
        return self._one.pid

    def decode(self, data: bytes, view: View, out: Uint8Array) -> None:
        """Fill `out` [3, T, S, S], which must be contiguous, with T frames of a view.

        Raises:
            ClipError: as `ViewDecoder.decode`; also where the child had to be ended, because it crashed or hung.
            MemoryError: the child has not enough memory.
        """
        try:
            child = self._one.running()
            child.send({"view": asdict(view), "shape": list(out.shape), "bytes": len(data)}, data)
            answer = child.receive(SILENT_S)
            if "memory" in answer:
                raise MemoryError(answer["memory"])
            if "error" in answer:
                raise ClipError(answer["error"])
            child.fill(out.data.cast("B"))
        except (ClipError, MemoryError):
            raise
        except (EOFError, ConnectionError):
            ending = self.close(wait_s=0.5)
            raise ClipError(f"the decoder's process ended: {ending}") from None
        except TimeoutError:
            self.close()
            raise ClipError(f"not decoded after {SILENT_S:.0f} s") from None
        except BaseException:  # an interrupt leaves an answer half read
            self.close()
            raise

    def kill(self) -> None:
        """Kill the children of all threads: a thread that waits for its child meets `ClipError`."""
        for one in list(self._every):
            one.kill()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child of this thread as `OneChild.close` does; the next `decode` starts another."""
        return self._one.close(wait_s)


def _serve(connection: Connection) -> None:
    """What the child does: it decodes each clip that it gets, until the parent closes the connection."""
    decoder = ViewDecoder(Fraction(connection.settings["fps"]))
    connection.send({})
    while request := connection.receive():
        data = connection.read(request["bytes"])
        try:
            out = np.empty(request["shape"], np.uint8)
            decoder.decode(data, View(**request["view"]), out)
        except ClipError as error:
            connection.send({"error": str(error)})
        except MemoryError as error:
            connection.send({"memory": str(error) or "the decoder could not allocate memory"})
        except Exception as error:  # noqa: BLE001 - told to the parent, which names the clip
            connection.send({"error": f"the decoder failed: {type(error).__name__}: {error}"})
        else:
            connection.send({"done": True}, out.data.cast("B"))


if __name__ == "__main__":
    run_child(_serve)
