"""The process in which TorchScript networks of others compute. `script_process.py` starts it and is its other end."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.outside.child import Connection, run_child
from model.precision import without_tf32
from model.torchscript import load_script

_MOST_NUMBERS = 2**26
"""Numbers that are sent back. Features of a clip are some hundred."""

Answer = tuple[dict[str, Any], bytes]


def _serve(connection: Connection) -> None:
    """What the child does: it answers each request, until the parent closes the connection."""
    networks: list[tuple[Any, torch.device]] = []
    _limit_memory(connection.settings["memory_bytes"])
    connection.send({})
    while request := connection.receive():
        data = bytearray(connection.read(request["bytes"]))
        try:
            answer, numbers = _opened(request, networks) if "file" in request else _called(request, data, networks)
        except torch.OutOfMemoryError as error:
            answer, numbers = {"device_memory": str(error)}, b""
        except MemoryError:
            answer, numbers = {"failed": "the network could not allocate memory"}, b""
        except (RuntimeError, torch.jit.Error) as error:
            text = str(error)
            answer, numbers = {"failed": "can't allocate memory" if "bad_alloc" in text else text[-4000:]}, b""
        except ValueError as error:
            answer, numbers = {"refused": str(error)}, b""
        except OSError as error:
            answer, numbers = {"system": [error.errno, error.strerror, error.filename]}, b""
        except Exception as error:  # noqa: BLE001  (torch raises many kinds; each becomes the caller's one line)
            answer, numbers = {"failed": f"{type(error).__name__}: {error}"[-4000:]}, b""
        connection.send(answer | {"bytes": len(numbers)}, numbers)


def _opened(request: dict[str, Any], networks: list[tuple[Any, torch.device]]) -> Answer:
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    network = load_script(Path(request["file"]), device)
    networks.append((network, device))
    arguments = [argument.name for argument in network.forward.schema.arguments]
    return {"number": len(networks) - 1, "arguments": arguments}, b""


@torch.no_grad()
@without_tf32()
def _called(request: dict[str, Any], data: bytearray, networks: list[tuple[Any, torch.device]]) -> Answer:
    network, device = networks[request["call"]]
    video = torch.frombuffer(data, dtype=torch.float32).reshape(request["shape"]).to(device)
    found = network(video, **request["flags"])
    if not isinstance(found, Tensor):
        return {"given": type(found).__name__}, b""
    shape = list(found.shape)
    if found.ndim != 2 or found.numel() > _MOST_NUMBERS:
        return {"given": str(shape)}, b""
    return {"shape": shape}, found.float().cpu().contiguous().numpy().tobytes()


def _limit_memory(more: int) -> None:
    """Limit what this process may allocate to what it has now and `more` bytes. Memory of a GPU does not count."""
    status = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + more, now + more))


if __name__ == "__main__":
    run_child(_serve)
