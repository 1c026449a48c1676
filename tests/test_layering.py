"""The order of the folders and what each may import. Everything is read from syntax trees; nothing is run."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "model": {"data_pipeline", "trainer", "launch", "deepspeed", "ray", "argparse", "webdataset"},
    "data_pipeline": {"model", "trainer", "launch", "deepspeed", "argparse"},
    "trainer": {"launch", "ray", "argparse"},
    "launch": set(),
}
OUTSIDE = "data_pipeline.outside"
"""The lowest folder, which every package may use, also `model`. It imports Python's own library and PyYAML alone."""
RAY_LIVES_IN = {f"data_pipeline/build/{name}.py" for name in ("driver", "ray_workers", "ray_cluster", "ray_private")}
DEEPSPEED_LIVES_IN = "trainer/engine/"
LOOP = ("trainer.loop", "trainer.prepare", "trainer.run")
METHOD = ("trainer.autoencoder_networks", "trainer.autoencoder", "trainer.autoencoder_builder", "trainer.diffusion")
# A module may import modules of its own floor and of those before it. One line is one floor. Folders of one floor that
# may not import each other stand in `APART`.
FLOORS = (
    ("data_pipeline.outside",),
    ("data_pipeline.store", "data_pipeline.ffmpeg", "data_pipeline.raw_video"),
    ("data_pipeline.source", "data_pipeline.cut"),
    ("data_pipeline.dataset",),
    ("data_pipeline.build", "data_pipeline.read"),
    ("data_pipeline.latents",),
    ("data_pipeline.texts",),
    ("data_pipeline.report",),
    ("model",),
    ("trainer.config",),
    ("trainer.engine", "trainer.randomness", "trainer.perceptual", "trainer.garbage"),
    ("trainer.join",),
    ("trainer.distributed",),  # it starts DeepSpeed, so it stands above the engine
    ("trainer.method", "trainer.team"),
    ("trainer.evaluation",),
    ("trainer.latents",),
    ("trainer.texts",),
    ("trainer.telemetry",),
    ("trainer.checkpoint", "trainer.faults"),
    LOOP,  # below the methods, because the loop meets a method only through `trainer.method`
    ("trainer.objective", "trainer.gan", "trainer.latent_terms", "trainer.step_terms", *METHOD),
    ("trainer.estimate", "trainer.sampling"),
    ("trainer.generation",),
    ("launch",),
)
METHOD_ONLY = ("model", "trainer.autoencoder", "trainer.diffusion", "trainer.config.train", "trainer.config.diffusion")
APART = (
    ("data_pipeline.source", "data_pipeline.cut"),
    ("data_pipeline.build", "data_pipeline.read"),
    *((method, loop) for method in METHOD for loop in LOOP),
)
ON_TOP = {"__init__.py", "ffmpeg.py", "raw_video.py"}  # all that may stand directly in data_pipeline/


def sources() -> list[Path]:
    """Every file of the packages."""
    return [file for package in FORBIDDEN for file in sorted((ROOT / package).rglob("*.py"))]


def module_name(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@cache
def nodes(file: Path) -> list[ast.AST]:
    """All of a file's syntax tree."""
    return list(ast.walk(ast.parse(file.read_text(), str(file))))


@cache
def imported(file: Path) -> frozenset[str]:
    """Modules that a file imports anywhere, also inside functions; `from package import module` means the module."""
    found: set[str] = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inside = ROOT / Path(*node.module.split("."), f"{alias.name}.py")
                found.add(f"{node.module}.{alias.name}" if inside.exists() else node.module)
    return frozenset(found)


def floor_of(module: str) -> tuple[int, str] | None:
    """The floor of a module and the folder of that floor it lies in; None for a module of another package."""
    for number, folders in enumerate(FLOORS):
        for folder in folders:
            if module == folder or module.startswith(f"{folder}."):
                return number, folder
    return None


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_import_only_what_is_below_them(package: str) -> None:
    for file in sorted((ROOT / package).rglob("*.py")):
        names = {name for name in imported(file) if not name.startswith(f"{OUTSIDE}.")}
        wrong = {name.split(".")[0] for name in names} & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_lowest_folder_imports_only_python_and_yaml() -> None:
    for file in sorted((ROOT / OUTSIDE.replace(".", "/")).glob("*.py")):
        names = {name for name in imported(file) if not name.startswith(f"{OUTSIDE}.")}
        wrong = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"yaml"}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_no_module_imports_from_a_higher_floor() -> None:
    wrong = []
    for file in sources():
        here = floor_of(module_name(file))
        if here is None:
            assert file.name == "__init__.py", f"{file.relative_to(ROOT)} stands on no floor of FLOORS"
            continue
        for name in sorted(imported(file)):
            there = floor_of(name)
            if there is None or there[1] == here[1]:
                continue
            if there[0] > here[0] or (here[1], there[1]) in APART or (there[1], here[1]) in APART:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_imports() -> None:
    edges = {module_name(file): imported(file) for file in sources()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(edges.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_nothing_private_is_imported_from_another_module() -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {node.module}.{alias.name}"
        for file in sources()
        for node in nodes(file)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not wrong, "\n".join(wrong)


def test_ray_deepspeed_and_transformers_are_each_known_to_one_folder() -> None:
    for file in sources():
        place = str(file.relative_to(ROOT))
        packages = {name.split(".")[0] for name in imported(file)}
        assert "ray" not in packages or place in RAY_LIVES_IN, place
        assert "deepspeed" not in packages or place.startswith(DEEPSPEED_LIVES_IN), place
        assert not packages & {"transformers", "tokenizers"} or place.startswith("trainer/texts/"), place


def test_hardly_a_file_stands_directly_in_the_pipeline() -> None:
    assert {file.name for file in (ROOT / "data_pipeline").glob("*.py")} <= ON_TOP


def test_the_driver_knows_nothing_of_clips() -> None:
    """Another kind of unit work, with latents for instance, runs through the same files."""
    for name in ("driver", "ray_workers", "ray_cluster", "ray_private", "ray_token", "unit_body", "progress"):
        tree = ast.parse((ROOT / "data_pipeline/build" / f"{name}.py").read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        ours = {module for module in modules if module.startswith("data_pipeline")}
        allowed = (
            "driver",
            "ray_workers",
            "ray_cluster",
            "ray_private",
            "ray_token",
            "unit_body",
            "progress",
            "config",
        )
        safety = {
            "data_pipeline.store.private_folder",
            "data_pipeline.outside.redaction",
            "data_pipeline.outside.console",
        }
        assert ours <= {f"data_pipeline.build.{other}" for other in allowed} | safety, name


def test_scripts_are_pages() -> None:
    """A launch script parses, builds, calls one function and prints: no classes, and it fits on a few screens."""
    for file in sorted((ROOT / "launch").glob("*.py")):
        tree = ast.parse(file.read_text())
        assert len(file.read_text().splitlines()) <= 150, f"{file.name} holds logic that a test would want to reach"
        is_script = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
        assert not is_script or not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)), file.name


def test_the_loop_knows_no_method() -> None:
    """What the methods share imports nothing of any of them: neither networks nor clips nor settings."""
    shared = ["loop", "prepare", "run", "method", "config/run", "telemetry/recorder", "faults/rollback"]
    shared += ["checkpoint/checkpoints", "checkpoint/reshard", "checkpoint/zero_files"]
    for name in shared:
        file = ROOT / "trainer" / f"{name}.py"
        modules = {node.module for node in nodes(file) if isinstance(node, ast.ImportFrom)}
        modules.discard("model.provenance")  # it knows runs and steps, and no network
        wrong = [m for m in modules if m and m.startswith(METHOD_ONLY)]
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"
