"""`open_frames` in a child process: a decoder that crashes or hangs costs one video, and decodes beside the parent.

The child serves one video after another and is replaced after a crash. It sends every picture as soon as it is decoded,
and says later which of them stay, because a later error may show that earlier ones are spoiled. So the parent makes
something small of each picture at once, and neither process holds many of them.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.child import Child, run_child
from data_pipeline.cut.frames import Break, NumberedFrame, UndecodableVideo, open_frames
from data_pipeline.cut.sampling import Picture

SILENT_S = 600.0
"""Seconds without a picture after which a decoder counts as hung. Reading the times of a film takes minutes."""


class IsolatedFrames:
    """Opens one video after another in a child process. Several threads must not use it at once."""

    def __init__(self) -> None:
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id; None while no child runs."""
        return self._child.process.pid if self._child else None

    @contextmanager
    def open(self, path: str | Path) -> Iterator[IsolatedReader]:
        """Open a video as `open_frames` does.

        Raises:
            UndecodableVideo: as `open_frames`; and with `cause` crash or timeout when the child had to be ended, also
                while frames are read.
        """
        if self._child is None:
            self._child = Child.start("data_pipeline.cut.isolated_frames", {}, silent_s=SILENT_S)
        reader = IsolatedReader(self._child, path)
        try:
            reader.begin()
            yield reader
            reader.finish()
        except (EOFError, ConnectionError):
            ending = self.close(wait_s=0.5)  # a crash reaches the socket a moment before the exit status
            raise UndecodableVideo(f"{Path(path).name}: the decoder's process ended: {ending}", "crash") from None
        except TimeoutError:
            self.close()
            raise UndecodableVideo(f"{Path(path).name}: no frame came for {SILENT_S:.0f} s", "timeout") from None
        finally:
            if not reader.ended:  # an interrupt leaves an answer half read
                self.close()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child, if one runs; the next `open` starts another.

        Args:
            wait_s: seconds that the child may take to end by itself before it is killed.
        Returns:
            How the child ended.
        """
        child, self._child = self._child, None
        return child.end(wait_s) if child else "not running"


class IsolatedReader:
    """The frames of a video that a child has open. `IsolatedFrames.open` makes it.

    Attributes:
        fps: the file's average number of frames a second.
        ended: whether the child has nothing more to say of the video.
    """

    def __init__(self, child: Child, path: str | Path) -> None:
        self._child, self._path = child, Path(path)
        self.fps, self.ended = Fraction(0), False

    def begin(self) -> None:
        """Wait until the video is open. Raises: as `IsolatedFrames.open`, or what `Child.next` raises."""
        self._child.send({"path": str(self._path)})
        self.fps = Fraction(self._next()["fps"])

    def frames(
        self, interval: int, take: Callable[[NDArray[np.uint8]], Picture]
    ) -> Iterator[NumberedFrame[Picture] | Break]:
        """As `FrameReader.frames`; to be called once. `take` gets pixels that are its own until it returns."""
        self._child.send({"interval": interval})
        taken: dict[int, Picture] = {}
        buffer = np.empty(0, np.uint8)
        count = 0
        while not self.ended:
            said = self._next()
            if "picture" in said:
                height, width = said["picture"]
                if buffer.size != height * width * 3:
                    buffer = np.empty(height * width * 3, np.uint8)
                self._child.fill(buffer.data)
                taken[count] = take(buffer.reshape(height, width, 3))
                count += 1
            elif "frame" in said:
                place = said["frame"]
                yield NumberedFrame(said["number"], said["time"], taken[place])
                taken = {later: picture for later, picture in taken.items() if later > place}
            elif "break" in said:
                yield Break(**said["break"])

    def finish(self) -> None:
        """Tell the child that no more frames are wanted, where it has not come to the end of the video."""
        if self.ended:
            return
        self._child.send({"stop": True})
        while not self.ended:
            said = self._next()
            if "picture" in said:
                self._child.fill(memoryview(bytearray(said["picture"][0] * said["picture"][1] * 3)))

    def _next(self) -> dict[str, Any]:
        said = self._child.next()
        self.ended = "end" in said or "error" in said
        if "error" in said:
            raise UndecodableVideo(said["error"], said["cause"])
        return said


class _Stopped(Exception):
    """The parent wants no more frames of this video."""


def _serve(connection: socket.socket) -> None:
    """What the child does: it decodes each video that it is told, until the parent closes the connection."""
    stream: BinaryIO = connection.makefile("rb")

    def say(**message: Any) -> None:
        connection.sendall(json.dumps(message).encode() + b"\n")

    stream.readline()
    say(ready=True)
    while line := stream.readline():
        request = json.loads(line)
        if "stop" in request:  # of a video that has ended meanwhile
            continue
        path = Path(request["path"])
        try:
            _decode(path, connection, stream, say)
            say(end=True)
        except _Stopped:
            say(end=True)
        except UndecodableVideo as error:
            say(error=str(error), cause=error.cause)
        except MemoryError:
            say(error=f"{path.name}: needs more memory to decode than there is", cause="memory")
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - told to the parent, which names the video
            say(error=f"the decoder failed on {path.name}: {type(error).__name__}: {error}", cause="failure")


def _decode(path: Path, connection: socket.socket, stream: BinaryIO, say: Callable[..., None]) -> None:
    count = 0

    def take(pixels: NDArray[np.uint8]) -> int:
        nonlocal count
        if select.select([connection], [], [], 0)[0]:
            raise _Stopped
        say(picture=pixels.shape[:2])
        connection.sendall(np.ascontiguousarray(pixels).data.cast("B"))
        count += 1
        return count - 1

    with open_frames(path) as reader:
        say(fps=str(reader.fps))
        request = json.loads(stream.readline() or b'{"stop": true}')
        if "stop" in request:
            raise _Stopped
        for event in reader.frames(request["interval"], take):
            if isinstance(event, Break):
                say(**{"break": asdict(event)})
            else:
                say(frame=event.picture, number=event.number, time=event.time)


if __name__ == "__main__":
    run_child(_serve)
