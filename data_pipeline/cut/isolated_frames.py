"""`open_frames` in a child process: a decoder that crashes or hangs costs one video, and decodes beside the parent.

The child serves one video after another, and is replaced after a crash and after `_VIDEOS` of them. It gives every
picture as soon as it is decoded, and says later which of them stay, because a later error may show that earlier ones
are spoiled. So the parent makes something small of each picture at once, and neither process holds many of them.
Pictures lie in memory that both share (`shared_pictures.py`); all else goes over the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cut.frames import Break, NumberedFrame, UndecodableVideo, open_frames
from data_pipeline.cut.sampling import Picture
from data_pipeline.cut.shared_pictures import PictureReader, PictureWriter
from data_pipeline.outside.child import Child, Connection, OneChild, Program, readable, run_child

SILENT_S = 600.0
"""Seconds without a picture after which a decoder counts as hung. Reading the times of a film takes minutes."""
_VIDEOS = 256
"""Videos that one child decodes. Its memory grows with every file of some kinds, because the heap is fragmented."""
_TOO_LARGE = "needs more memory to decode than there is"


class IsolatedFrames:
    """Opens one video after another in a child process. Several threads must not use it at once, apart from `kill`."""

    def __init__(self) -> None:
        self._one = OneChild(self._program, _VIDEOS)
        self._memory: PictureReader | None = None

    def _program(self) -> Program:
        if self._memory is not None:  # of the child before, or of one that did not start
            self._memory.close()
        self._memory = PictureReader()
        return Program(
            module="data_pipeline.cut.isolated_frames",
            named="the decoder's process",
            settings={"memory": self._memory.descriptor},
            environment={"OMP_NUM_THREADS": "1"},
            descriptors=[self._memory.descriptor],
            silent_s=SILENT_S,
        )

    @property
    def pid(self) -> int | None:
        """The child's process id; None while no child runs."""
        return self._one.pid

    @contextmanager
    def open(self, path: str | Path) -> Iterator[IsolatedReader]:
        """Open a video as `open_frames` does.

        Raises:
            UndecodableVideo: as `open_frames`; with `cause` crash or timeout when the child had to be ended, also while
                frames are read; and with `memory` where one of the two processes has not enough memory.
        """
        child = self._one.running()
        assert self._memory is not None
        reader = IsolatedReader(child, self._memory, path)
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
        except MemoryError as error:
            raise UndecodableVideo(f"{Path(path).name}: {_TOO_LARGE}", "memory") from error
        finally:
            if not reader.ended:  # an interrupt leaves an answer half read
                self.close()

    def kill(self) -> None:
        """As `OneChild.kill`: the thread that reads a video meets `UndecodableVideo`."""
        self._one.kill()

    def close(self, wait_s: float = 0.0) -> str:
        """End the child as `OneChild.close` does; the next `open` starts another."""
        how = self._one.close(wait_s)
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        return how


class IsolatedReader:
    """The frames of a video that a child has open. `IsolatedFrames.open` makes it.

    Attributes:
        fps: the file's average number of frames a second.
        ended: whether the child has nothing more to say of the video.
    """

    def __init__(self, child: Child, memory: PictureReader, path: str | Path) -> None:
        self._child, self._memory, self._path = child, memory, Path(path)
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
        count = 0
        while not self.ended:
            said = self._next()
            if "picture" in said:
                taken[count] = take(self._memory.picture(*said["picture"]))
                with suppress(ConnectionError):  # a child that has just ended has said more before, which still counts
                    self._child.send({"taken": count})
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
            self._next()

    def _next(self) -> dict[str, Any]:
        said = self._child.next()
        self.ended = "end" in said or "error" in said
        if "error" in said:
            raise UndecodableVideo(said["error"], said["cause"])
        return said


class _Stopped(Exception):
    """The parent wants no more frames of this video."""


class _Pictures:
    """Hands the pictures of one video after another to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._writer = PictureWriter(connection.settings["memory"], self._hear)
        self._count = 0

    def begin(self) -> None:
        """Begin with another video. The parent is done with the pictures of the one before."""
        self._writer.unread = self._count = 0

    def take(self, pixels: NDArray[np.uint8]) -> int:
        """Hand a picture over; its number. Raises: _Stopped: the parent wants no more."""
        while readable(self._connection.socket, 0.0):
            self._hear()
        at = self._writer.put(pixels)
        self._connection.send({"picture": [at, *pixels.shape[:2]]})
        self._count += 1
        return self._count - 1

    def _hear(self) -> None:
        """Take one message of the parent, and wait for it."""
        if "taken" not in (self._connection.receive() or {}):
            raise _Stopped
        self._writer.unread -= 1


def _serve(connection: Connection) -> None:
    """What the child does: it decodes each video that it is told, until the parent closes the connection."""
    pictures = _Pictures(connection)
    connection.send({})
    while request := connection.receive():
        if "path" not in request:  # a word about a video that has ended meanwhile
            continue
        path = Path(request["path"])
        try:
            _decode(path, connection, pictures)
            connection.send({"end": True})
        except _Stopped:
            connection.send({"end": True})
        except UndecodableVideo as error:
            connection.send({"error": str(error), "cause": error.cause})
        except MemoryError:
            connection.send({"error": f"{path.name}: {_TOO_LARGE}", "cause": "memory"})
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - told to the parent, which names the video
            said = f"the decoder failed on {path.name}: {type(error).__name__}: {error}"
            connection.send({"error": said, "cause": "failure"})


def _decode(path: Path, connection: Connection, pictures: _Pictures) -> None:
    pictures.begin()
    with open_frames(path) as reader:
        connection.send({"fps": str(reader.fps)})
        request = connection.receive() or {}
        if "interval" not in request:
            raise _Stopped
        for event in reader.frames(request["interval"], pictures.take):
            if isinstance(event, Break):
                connection.send({"break": asdict(event)})
            else:
                connection.send({"frame": event.picture, "number": event.number, "time": event.time})


if __name__ == "__main__":
    run_child(_serve)
