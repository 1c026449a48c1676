"""The code of an exported autoencoder: one file that needs none of this project's packages.

The file is put together from the sources of `model/`, so that there is one network and not two. Of each module it has
the definitions that `model/export/autoencoder.py` needs, directly or through others, as they are written there; imports
from `model` fall away, because all names are in one file then. So no two of these definitions may have the same name.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ENTRY = "model.export.autoencoder"
PACKAGE = Path(__file__).parents[2]
HEADER = '''"""VidTwin, a video autoencoder, in one file: for diffusers, or for torch and safetensors alone.

`AutoencoderVidTwin`, at the end, is what to use. This file was put together from the sources of the VidTwin training
framework (Apache-2.0), from the modules named below. Change them there.
"""

'''


@dataclass(frozen=True)
class _Definition:
    """A statement at the top of a module.

    Attributes:
        names: what it defines.
        uses: every name that stands in it.
        text: its source, with the comments directly above it and a docstring below it.
    """

    names: frozenset[str]
    uses: frozenset[str]
    text: str


@dataclass(frozen=True)
class _Module:
    """A module of `model/`.

    Attributes:
        docstring: of the module.
        definitions: in the order of the source.
        ours: name -> the module of `model/` that it is imported from.
        foreign: name -> the import statement that brings it.
    """

    docstring: str
    definitions: list[_Definition]
    ours: dict[str, str]
    foreign: dict[str, str]


def one_file() -> str:
    """The text of the file."""
    modules: dict[str, _Module] = {}
    _collect(ENTRY, modules)
    needed = _needed(modules)
    names = [name for _, definition in needed for name in definition.names]
    imports: dict[str, str] = {}
    sections: list[str] = []
    previous = ""
    for module, definition in needed:
        for name in sorted(definition.uses & modules[module].foreign.keys()):
            statement = modules[module].foreign[name]
            assert imports.setdefault(name, statement) == statement, f"{name} is imported in two ways"
        if module != previous:
            sections.append(_heading(module, modules[module].docstring))
            previous = module
        sections.append(definition.text)
    twice = sorted({name for name in names if names.count(name) > 1 or name in imports})
    assert not twice, f"{', '.join(twice)}: several modules define this name; rename one of them"
    return HEADER + "\n".join(_sorted(imports)) + "\n\n\n" + "\n\n\n".join(sections) + "\n"


def _collect(name: str, modules: dict[str, _Module]) -> None:
    """Read a module, after those that it imports from."""
    if name in modules:
        return
    found = _read(name)
    for other in found.ours.values():
        _collect(other, modules)
    modules[name] = found


def _read(name: str) -> _Module:
    text = (PACKAGE / Path(*name.split("."))).with_suffix(".py").read_text("utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    module = _Module(ast.get_docstring(tree) or "", [], {}, {})
    body = tree.body[1:] if module.docstring else tree.body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            _add_import(statement, module)
        elif not _is_text(statement):
            last = following if following is not None and _is_text(following) else statement
            names = frozenset(_bound(statement))
            uses = frozenset(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
            module.definitions.append(_Definition(names, uses, _source(lines, statement, last)))
    return module


def _add_import(statement: ast.Import | ast.ImportFrom, module: _Module) -> None:
    for alias in statement.names:
        name = alias.asname or alias.name
        if isinstance(statement, ast.Import):
            assert alias.asname or "." not in name, f"import {name} binds the package; name it with `as`"
            module.foreign[name] = ast.unparse(ast.Import([alias]))
            continue
        assert statement.module is not None, "a relative import has no name to look for"
        if statement.module.partition(".")[0] == "model":
            assert alias.asname is None, f"{name} is imported under another name, which one file cannot keep"
            module.ours[name] = statement.module
        elif statement.module != "__future__":
            module.foreign[name] = ast.unparse(ast.ImportFrom(statement.module, [alias], 0))


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a string that stands alone: the docstring of the one before it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
        return {statement.name}
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.If):
        return set().union(*(_bound(inner) for inner in (*statement.body, *statement.orelse)))
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _source(lines: list[str], first: ast.stmt, last: ast.stmt) -> str:
    """The source from one statement to another, with the decorators and comments directly above."""
    decorators = getattr(first, "decorator_list", [])
    start = min([first.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while start and lines[start - 1].startswith("#"):
        start -= 1
    assert last.end_lineno is not None
    return "\n".join(lines[start : last.end_lineno])


def _needed(modules: dict[str, _Module]) -> list[tuple[str, _Definition]]:
    """Module and definition of all that the entry's definitions need, each after those that it needs."""
    wanted = {(ENTRY, name) for definition in modules[ENTRY].definitions for name in definition.names}
    waiting = list(wanted)
    while waiting:
        module, name = waiting.pop()
        definition = next((one for one in modules[module].definitions if name in one.names), None)
        assert definition is not None, f"{module} does not define {name}"
        for used in definition.uses:
            if used in modules[module].ours:
                found = (modules[module].ours[used], used)
            elif any(used in one.names for one in modules[module].definitions):
                found = (module, used)
            else:
                continue  # an import from elsewhere, a builtin, a local name
            if found not in wanted:
                wanted.add(found)
                waiting.append(found)
    return [
        (module, definition)
        for module, content in modules.items()
        for definition in content.definitions
        if any((module, name) in wanted for name in definition.names)
    ]


def _heading(module: str, docstring: str) -> str:
    title = f"# ---- {module.replace('.', '/')}.py "
    return "\n".join([title + "-" * (120 - len(title)), *(f"# {line}".rstrip() for line in docstring.splitlines())])


def _sorted(imports: dict[str, str]) -> list[str]:
    """The statements, `import` before `from`, those of one module as one."""
    plain = sorted({statement for statement in imports.values() if statement.startswith("import ")})
    from_: dict[str, list[str]] = {}
    for statement in sorted({*imports.values()} - {*plain}):
        module, _, name = statement.removeprefix("from ").partition(" import ")
        from_.setdefault(module, []).append(name)
    return plain + [f"from {module} import {', '.join(names)}" for module, names in from_.items()]
