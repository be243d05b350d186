"""Every public name says what it is, with the shapes of arrays that go in or out and the errors that it raises."""

import ast
import re
from collections import namedtuple
from pathlib import Path

from edgemin_utils import errors

PACKAGE = Path(errors.__file__).parent
OWN_ERRORS = {name for name, item in vars(errors).items() if isinstance(item, type)}
ARRAYS = re.compile(r"\b(ndarray|ArrayLike|Tensor|Batch)\b")
# (rows,), (batch, tokens), (heads * head_size, hidden_size); or shape in words; or the function that has said it.
SHAPE = re.compile(r"\([\w.*+ -]+,[\w.,*+ -]*\)|\(count\)|\bshape\b|\b1x\d+\b|\b(as|see|of|by|from|in|what) `[\w.]+`")
# A public name: what is said of it or of the method that it overrides, and what its class says.
Name = namedtuple("Name", "place node said around", defaults=[""])
MODULES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
CLASSES = {node.name: node for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def public(tree: ast.AST) -> list[ast.FunctionDef | ast.ClassDef]:
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node for node in nodes if not node.name.startswith("_")]


def said_of(owner: ast.ClassDef, method: str) -> str:
    """What a class, or the package's class that it derives from, says of a method; a library's has a manual."""
    own = [ast.get_docstring(node) for node in public(owner) if node.name == method]
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in owner.bases]
    return next(filter(None, own), "") or "".join(said_of(CLASSES[name], method) for name in bases if name in CLASSES)


NAMES = list[Name]()
for module, tree in MODULES.items():
    for node in public(tree):
        place, of_node = f"{module}: {node.name}", ast.get_docstring(node) or ""
        NAMES.append(Name(place, node, of_node))
        for method in public(node) if isinstance(node, ast.ClassDef) else ():
            NAMES.append(Name(f"{place}.{method.name}", method, said_of(node, method.name), of_node))
FUNCTIONS = [name for name in NAMES if isinstance(name.node, ast.FunctionDef)]


def raised(node: ast.AST) -> set[str]:
    """The package's errors that a function's own lines raise; not those of functions inside it."""
    found = set[str]()
    for item in ast.iter_child_nodes(node):
        if isinstance(item, ast.Raise) and isinstance(item.exc, ast.Call):
            found.add(getattr(item.exc.func, "id", ""))
        if not isinstance(item, ast.FunctionDef | ast.Lambda):
            found |= raised(item)
    return found & OWN_ERRORS


def test_every_module_and_public_name_says_what_it_is():
    assert [module for module, tree in MODULES.items() if not ast.get_docstring(tree)] == []
    assert [name.place for name in NAMES if not name.said] == []


def test_arrays_and_tensors_have_their_shape_named():
    signatures = [(name, f"{ast.unparse(name.node.args)} {ast.unparse(name.node.returns)}") for name in FUNCTIONS]
    taking = [name for name, signature in signatures if ARRAYS.search(signature)]
    assert [name.place for name in taking if not SHAPE.search(f"{name.said} {name.around}")] == []


def test_errors_that_a_function_raises_are_named():
    said = {name.place: set(re.findall(r"\w+", f"{name.said} {name.around}")) for name in FUNCTIONS}
    missing = {name.place: raised(name.node) - said[name.place] for name in FUNCTIONS}
    # The docstrings of commands are help for the terminal.
    assert {place: unsaid for place, unsaid in missing.items() if unsaid and not place.startswith("cli.py")} == {}
