"""Every public name says what it is, with the shapes of arrays that go in or out and the errors that it raises."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pdoc.docstrings import convert

from edgemin_utils import errors

PACKAGE = Path(errors.__file__).parent
OWN_ERRORS = {
    name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, errors.EdgeMINError)
}
ARRAYS = re.compile(r"\b(ndarray|ArrayLike|Tensor|Batch)\b")
# (rows,), (batch, tokens), (heads * head_size, hidden_size); or shape in words; or the function that has said it.
SHAPE = re.compile(r"\([\w.*+ -]+,[\w.,*+ -]*\)|\(count\)|\bshape\b|\b1x\d+\b|\b(as|see|of|by|from|in|what) `[\w.]+`")


@dataclass(frozen=True)
class Name:
    """A public function, method or class: where it is, and all that is said of it (of a method also what its class and
    the method that it overrides say)."""

    place: str
    node: ast.FunctionDef | ast.ClassDef
    said: str
    around: str

    def __str__(self) -> str:
        return self.place


def public(name: str) -> bool:
    return not name.startswith("_")


def parsed() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


MODULES = parsed()
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


def names() -> Iterator[Name]:
    for module, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and public(node.name):
                yield Name(f"{module}.{node.name}", node, ast.get_docstring(node) or "", "")
            if isinstance(node, ast.ClassDef) and public(node.name):
                of_class = ast.get_docstring(node) or ""
                yield Name(f"{module}.{node.name}", node, of_class, "")
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and (public(method.name) or method.name == "__call__"):
                        said = ast.get_docstring(method) or inherited(node, method.name)
                        yield Name(f"{module}.{node.name}.{method.name}", method, said, of_class)


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
    assert [module for module, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_every_public_name_says_what_it_is():
    assert [name.place for name in NAMES if not name.said] == []


def test_arrays_and_tensors_have_their_shape_named():
    missing = [
        name.place
        for name in FUNCTIONS
        if ARRAYS.search(annotations(name.node)) and not SHAPE.search(f"{name.said} {name.around}")
    ]
    assert missing == []


def test_errors_that_a_function_raises_are_named():
    missing = {
        name.place: raised(name.node) - set(re.findall(r"\w+", f"{name.said} {name.around}")) for name in FUNCTIONS
    }
    assert {place: unsaid for place, unsaid in missing.items() if unsaid} == {}


def test_the_api_reference_understands_sections_and_formulas():
    """As pdoc converts them for `make docs`: no marker of a section or formula is left as it was written."""
    pages = {name.place: convert(name.said, "google", None) for name in NAMES}
    pages |= {module: convert(ast.get_docstring(tree), "google", None) for module, tree in MODULES.items()}
    left = re.compile(r"^ *(Args|Returns|Raises|Attributes):$|:math:|\.\. math::|:class:|:func:", re.MULTILINE)
    assert {place: found[0] for place, page in pages.items() if (found := left.search(page))} == {}
    scores = pages["edgemin_utils.distillation.losses.relation_scores"]
    assert r"\\( A_a B_a^\top / \sqrt{d_r} \\)" in scores and "**ModelError:**" in scores
    assert "$$L = " in pages["edgemin_utils.distillation.relations"]


@pytest.mark.parametrize(
    "code, found",
    [
        ("def f():\n    raise DataError('no')", {"DataError"}),
        ("def f():\n    if x:\n        raise ModelError('no') from error", {"ModelError"}),
        ("def f():\n    def g():\n        raise DataError('no')\n    raise ValueError('no')", set()),
    ],
)
def test_the_search_for_errors_finds_them(code, found):
    assert raised(ast.parse(code).body[0]) == found
