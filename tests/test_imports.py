"""One direction of imports: read from the source of every module, imports inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "lhkernels"

# From the ground up. A part (a module or folder of lhkernels) imports from lower floors alone, and
# from itself. "" is lhkernels/__init__.py, the public names.
FLOORS = (
    ("tables",),
    ("hyperparameters", "plan", "ops"),
    ("reference", "_extension", "binding"),
    ("step", "hessian"),
    ("optim", "asm"),
    ("",),
    ("environment",),
    ("training", "inspect"),
    ("cli",),
    ("__main__",),
)

# The tool for curvature and the optimizer know nothing of each other, wherever their floors are.
STRANGERS = (("optim", "hessian"), ("step", "hessian"))

# What an installation may lack, and the files that import it at their top: those are imported
# inside functions themselves. Everybody else imports it inside a function.
OPTIONAL = {
    "matplotlib": (),
    "numpy": (),
    "pytorch_optimizer": (),
    "rich": ("cli/train_display.py",),
    "scipy": (),
    "sklearn": (),
    "triton": ("step/triton_kernel.py",),
}

# Who may import these at all.
ONLY = {
    "triton": ("step/triton*.py", "asm.py"),
    "lhkernels._C": ("_extension.py",),
    "bench": ("cli/bench.py",),
}


class Import(NamedTuple):
    target: str  # a dotted name: the module, where the name imported from it is no module
    line: int
    lazy: bool  # inside a function
    typing: bool = False  # under `if TYPE_CHECKING:`, for annotations alone


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def dotted(module: str) -> str:
    """The dotted name of a file: ``step/base.py`` is ``lhkernels.step.base``."""
    parts = Path("lhkernels", module).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    return tuple(_imports(tree))


def _imports(node: ast.AST, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for name in node.names:
            yield Import(name.name, node.lineno, lazy, typing)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute here"
        for name in node.names:
            full = f"{node.module}.{name.name}"
            target = full if _is_module(full) else node.module or ""
            yield Import(target, node.lineno, lazy, typing)
    elif _is_call_of(node, "import_module") and isinstance(node.args[0], ast.Constant):
        yield Import(str(node.args[0].value), node.lineno, lazy)
    lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    typing = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, lazy, typing)


def _is_call_of(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name


def _is_module(name: str) -> bool:
    head, _, rest = name.partition(".")
    path = PACKAGE.joinpath(*rest.split("."))
    return head == "lhkernels" and (path.is_dir() or path.with_suffix(".py").is_file())


def part(name: str) -> str:
    """``lhkernels.step.base`` is of the part ``step``; ``lhkernels`` itself is ""."""
    return name.split(".")[1] if "." in name else ""


def own(module: str) -> list[Import]:
    """Imports of lhkernels' own modules."""
    return [i for i in imports(module) if i.target.split(".")[0] == "lhkernels"]


def test_every_part_has_a_floor():
    floors = [name for floor in FLOORS for name in floor]
    assert len(floors) == len(set(floors))
    missing = {part(dotted(module)) for module in modules()} - set(floors)
    assert not missing, f"give {sorted(missing)} a floor in FLOORS, above all that it imports"


@pytest.mark.parametrize("module", modules())
def test_imports_go_down(module):
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    here = part(dotted(module))
    for target, line, *_ in own(module):
        there = part(target)
        if there == here or there == "_C":
            continue
        assert floor_of[there] < floor_of[here], (
            f"lhkernels/{module}:{line} imports {target}, which does not lie below it; move what "
            "it needs into a lower part"
        )


@pytest.mark.parametrize(("a", "b"), STRANGERS)
def test_strangers_do_not_reach_each_other(a, b):
    """Neither straight nor through other parts."""
    direct: dict[str, set[str]] = {}
    for module in modules():
        reached = {part(i.target) for i in own(module)}
        direct.setdefault(part(dotted(module)), set()).update(reached)
    for start, forbidden in ((a, b), (b, a)):
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(direct.get(name, ()))
        assert forbidden not in seen, f"lhkernels.{start} reaches lhkernels.{forbidden}"


def test_no_module_imports_itself_through_others():
    graph = {dotted(m): {i.target for i in own(m) if not i.typing} for m in modules()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("module", modules())
def test_optional_packages_are_imported_late(module):
    for target, line, lazy, typing in imports(module):
        package = target.split(".")[0]
        if package in OPTIONAL and not lazy and not typing:
            assert module in OPTIONAL[package], (
                f"lhkernels/{module}:{line} imports {package}, which may be missing, when it is "
                "itself imported; do so inside the function that needs it"
            )


@pytest.mark.parametrize("name", ONLY)
def test_some_imports_have_one_place(name):
    importers = {m for m in modules() for i in imports(m) if f"{i.target}.".startswith(f"{name}.")}
    assert importers, f"nothing imports {name}: was it renamed?"
    allowed = {m for pattern in ONLY[name] for m in modules() if fnmatchcase(m, pattern)}
    assert importers <= allowed, f"{name} is imported by {sorted(importers - allowed)} as well"


def test_the_reader_of_imports_sees_them_all():
    code = (
        "import a.b, c\nfrom lhkernels import ops\nfrom lhkernels.plan import Plan\n"
        "def f():\n    import d\n    importlib.import_module('e.f')\n"
        "if TYPE_CHECKING:\n    import g\n"
    )
    assert list(_imports(ast.parse(code))) == [
        Import("a.b", 1, False), Import("c", 1, False), Import("lhkernels.ops", 2, False),
        Import("lhkernels.plan", 3, False), Import("d", 5, True), Import("e.f", 6, True),
        Import("g", 8, False, typing=True),
    ]  # fmt: skip
