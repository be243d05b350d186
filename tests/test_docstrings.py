"""Every public name says what it is, with the shapes of arrays that go in or out and the errors that it raises."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgemin_utils import errors

PACKAGE = Path(errors.__file__).parent
OWN_ERRORS = {
    name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, errors.EdgeMINError)
}
ARRAYS = re.compile(r"\b(ndarray|ArrayLike|Tensor|Batch)\b")
# (rows,), (batch, tokens), (heads * head_size, hidden_size); or shape in words; or the function that has said it.
SHAPE = re.compile(r"\([\w.*+ -]+,[\w.,*+ -]*\)|\(count\)|\bshape\b|\b1x\d+\b|\b(as|see|of|by|from|in|what) `[\w.]+`")


class Name(NamedTuple):
    """A public function, method or class: where it is, what is said of it or of the method that it overrides, and what
    its class says."""

    place: str
    node: ast.FunctionDef | ast.ClassDef
    said: str
    around: str


FILES = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {".".join(name.parts): ast.parse(path.read_text()) for name, path in FILES.items()}
CLASSES = {node.name: node for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(owner: ast.ClassDef, method: str) -> str:
    """What the package's classes that `owner` derives from say of a method; a library's class says it in its manual."""
    for base in owner.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        if name in CLASSES:
            for node in CLASSES[name].body:
                if isinstance(node, ast.FunctionDef) and node.name == method and ast.get_docstring(node):
                    return ast.get_docstring(node)
            return inherited(CLASSES[name], method)
    return ""


def public(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    nodes = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    yield from (node for node in nodes if not node.name.startswith("_"))


def names() -> Iterator[Name]:
    for module, tree in MODULES.items():
        for node in public(tree):
            place, of_node = f"{module}.{node.name}", ast.get_docstring(node) or ""
            yield Name(place, node, of_node, "")
            for method in public(node) if isinstance(node, ast.ClassDef) else ():
                said = ast.get_docstring(method) or inherited(node, method.name)
                yield Name(f"{place}.{method.name}", method, said, of_node)


NAMES = list(names())
FUNCTIONS = [name for name in NAMES if isinstance(name.node, ast.FunctionDef)]


def annotations(node: ast.FunctionDef) -> str:
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return " ".join(ast.unparse(part) for part in (*(item.annotation for item in arguments), node.returns) if part)


def raised(node: ast.FunctionDef) -> set[str]:
    """The package's errors that the function's own lines raise; not those of functions inside it."""
    found, left = set(), list(node.body)
    while left:
        item = left.pop()
        if isinstance(item, ast.Raise) and isinstance(item.exc, ast.Call):
            found.add(getattr(item.exc.func, "id", ""))
        if not isinstance(item, ast.FunctionDef | ast.Lambda):
            left.extend(ast.iter_child_nodes(item))
    return found & OWN_ERRORS


def test_every_module_says_what_it_is_for():
    empty = [module for module, tree in MODULES.items() if not ast.get_docstring(tree)]
    assert [module for module in empty if not module.endswith("__init__")] == []


def test_every_public_name_says_what_it_is():
    assert [name.place for name in NAMES if not name.said] == []


def test_arrays_and_tensors_have_their_shape_named():
    taking = [name for name in FUNCTIONS if ARRAYS.search(annotations(name.node))]
    assert [name.place for name in taking if not SHAPE.search(f"{name.said} {name.around}")] == []


def test_errors_that_a_function_raises_are_named():
    said = {name.place: set(re.findall(r"\w+", f"{name.said} {name.around}")) for name in FUNCTIONS}
    missing = {name.place: raised(name.node) - said[name.place] for name in FUNCTIONS}
    commands = "edgemin_utils.cli."  # whose docstrings are help for the terminal
    assert {place: unsaid for place, unsaid in missing.items() if unsaid and not place.startswith(commands)} == {}
