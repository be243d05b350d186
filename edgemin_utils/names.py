"""The language of model names, as in minilmv2,relation_heads=4+heads-0.2+int8: steps joined by `+`, each a method, `-`
and its value if it takes one, and `,setting=value` (lists: `_`) for what it alone feels and is not the profile's."""

import ast
import inspect
import linecache
import re
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from edgemin_utils.errors import SettingError
from edgemin_utils.settings import CRITERIA, Settings, load_settings, nearest, read_value, setting_fields

_FILE = tomllib.loads((Path(__file__).parent / "names.toml").read_text(encoding="utf-8"))


class Method(NamedTuple):
    """One kind of step."""

    kind: str  # teacher, distillation, pruning, tuning, scan (leaves no model) or quantization
    meaning: str  # what it does, with its source where it has one
    demands: str = ""  # what it demands of models or machine
    own: tuple[str, ...] = ()  # settings that it feels out of those that not every method of its kind feels
    rest: str = ""  # pattern of what stands behind its name, where it takes a value


METHODS = dict[str, Method]()
for _name, (_kind, _value, _own, _meaning, _demands) in _FILE["methods"].items():
    _felt = tuple(" ".join(_FILE["settings"][group] for group in _own.split()).split())
    METHODS[_name] = Method(_kind, _meaning, _demands, _felt, _FILE["values"][_value] if _value else "")
EXAMPLES: Mapping[str, str] = _FILE["examples"]
IMPLEMENTATIONS: dict[str, Any] = dict(_FILE["implementations"])
"""Name of an objective -> "module:class" in distillation/, or the class of one of one's own."""
SCHEME_CLASSES: Mapping[str, tuple[str, dict[str, Any]]] = _FILE["schemes"]
"""Name of a scheme -> "module:class" in quantization/, and what that is made with."""
LISTS: dict[str, list[str]] = dict(_FILE["lists"])
LISTS["objectives"] = [name for name in METHODS if METHODS[name].kind == "distillation" and name != "none-pretrained"]
_GRID = (5e-5, 1e-4, 2e-4)
LISTS["rates"] = [f"{name},prediction_learning_rate={rate}" for name in LISTS["objectives"] for rate in _GRID]
LISTS["schemes"] = [f"minilmv2+heads-0.2+{name}" for name, one in METHODS.items() if one.kind == "quantization"]
"""Name of a list -> the models that it stands for; lists may name lists."""
OWN_CODE: dict[str, str] = {}
"""Name of a method of one's own -> its source text, which is part of its stages' fingerprints."""


def register_method(name: str, kind: str, code: Any, own: Iterable[str] = ()) -> None:
    """Makes an objective, scheme or criterion of one's own known by name; raises SettingError where that cannot be."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or (name in METHODS and name not in OWN_CODE):
        raise SettingError(f"{name!r} cannot be registered: choose a new name of small letters, digits and hyphens")
    try:
        OWN_CODE[name] = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):  # a class that a notebook cell defines: out of its first method's cell
        file = next(item.__code__.co_filename for item in vars(code).values() if inspect.isfunction(item))
        nodes = ast.walk(ast.parse("".join(linecache.getlines(file))))
        OWN_CODE[name] = next(ast.unparse(node) for node in nodes if getattr(node, "name", "") == code.__name__)
    if kind != "criterion":
        METHODS[name] = Method(kind, (inspect.getdoc(code) or "one's own").split("\n")[0], "", tuple(own))
    elif name not in CRITERIA:
        CRITERIA.append(name)


@dataclass(frozen=True)
class Step:
    """One step; `role` is "assistant" for a student of the assistant's size, "by-assistant" for one taught by it."""

    method: str
    value: str = ""
    changes: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    role: str = ""
    text: str = ""

    @property
    def kind(self) -> str:
        """teacher, distillation, pruning, tuning, scan or quantization."""
        return METHODS[self.method].kind


@dataclass(frozen=True)
class Name:
    """A model's name, read: its steps, each spelled in full."""

    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """The name as it stands in tables and on disk."""
        return "+".join(step.text for step in self.steps)

    @property
    def step(self) -> Step:
        """The last step."""
        return self.steps[-1]

    @property
    def kind(self) -> str:
        """The last step's."""
        return self.step.kind

    @property
    def source(self) -> "Name | None":
        """The model that the last step starts from; students start from the teacher, which starts from nothing."""
        if len(self.steps) > 1:
            return Name(self.steps[:-1])
        return None if self.step.method == "teacher" else TEACHER

    @property
    def distilled(self) -> bool:
        """Whether a step is distillation."""
        return any(step.kind == "distillation" and not step.method.startswith("none") for step in self.steps)

    @property
    def taught(self) -> bool:
        """Whether training on learns from the teacher: a distilled student, and what was cut from the teacher."""
        return self.distilled or (self.steps[0].method == "teacher" and len(self.steps) > 1)

    @property
    def fake_format(self) -> str:
        """Number format that training respects from the last `qat` step on: int8, int4, or "" for none."""
        return next((step.value for step in reversed(self.steps) if step.method == "qat"), "")


TEACHER = Name((Step("teacher", text="teacher"),))


def felt_settings(name: Name, settings: Settings) -> tuple[str, ...]:
    """The settings that the last step of a name feels: its kind's and its method's own, if they can matter."""
    method, used = METHODS[name.step.method], replace(settings, **dict(name.step.changes))
    others = [other for known, other in METHODS.items() if other.kind == method.kind and known not in OWN_CODE]
    shared = {own for other in others for own in other.own} - set(method.own)
    felt = {item for item, meta in setting_fields().items() if method.kind in meta.metadata["felt"]}
    felt = (felt | set(method.own)) - shared
    if method.kind in ("pruning", "tuning") and not learns_from_teacher(name, settings):
        felt -= {"temperature", "soft_target_weight", "intermediate_weight"}
        felt -= set() if name.taught else {"recovery_distillation"}
    if method.kind == "pruning" and used.recovery_epochs == 0:
        felt -= {"recovery_learning_rate", "recovery_distillation", "batch_size"}
    if used.criterion != "random":
        felt -= {"draw"}
    if name.step.role == "assistant":
        felt |= {"assistant", "assistant_layers", "assistant_from_layers"}
    return tuple(item for item in setting_fields() if item in felt)


def learns_from_teacher(name: Name, settings: Settings) -> bool:
    """Whether the last step, trained under `settings`, learns from another model's answers."""
    settings = replace(settings, **dict(name.step.changes))
    if name.kind == "distillation":
        return not name.step.method.startswith("none")
    trains = name.kind == "tuning" or (name.kind == "pruning" and settings.recovery_epochs > 0)
    return trains and name.taught and settings.recovery_distillation


def step_settings(name: Name, settings: Settings) -> Settings:
    """The settings under which the last step works: the chain's and its own; an assistant's size is the student's."""
    own = replace(settings, **dict(name.step.changes))
    if name.step.role != "assistant":
        return own
    kept, student = own.assistant_from_layers, own.assistant or own.student
    return replace(own, student=student, student_layers=own.assistant_layers, student_from_layers=kept)


def read_name(text: str, settings: Settings) -> Name:
    """The name that a text stands for, in full; raises SettingError for an unknown step or setting, or wrong order."""
    default, steps = load_settings(settings.profile), tuple[Step, ...]()
    chain_wide = {item for item, meta in setting_fields().items() if "teacher" in meta.metadata["felt"]}
    for part in text.split("+"):
        word, *changes = part.split(",")
        step = _read_step(word, text)
        _check_order((*steps, step), text)
        said = {}
        for setting, equals, value in (change.partition("=") for change in changes):
            if not equals:
                raise SettingError(f"{text!r}: {setting!r} has no '='; write settings as in heads-0.2,rounds=2")
            said[setting] = _read_spelled(setting, value, settings)
        felt = felt_settings(Name((*steps, replace(step, changes=tuple(said.items())))), settings)
        if unfelt := [setting for setting in said if setting not in felt]:
            raise SettingError(f"{text!r}: {word} does not feel {unfelt[0]!r}; {nearest(unfelt[0], felt)}")
        values = {item: said.get(item, getattr(settings, item)) for item in felt if item not in chain_wide}
        changed = sorted(item for item, value in values.items() if value != getattr(default, item))
        spelled = ",".join([word, *(f"{item}={_spell(values[item])}" for item in changed)])
        steps = (*steps, replace(step, changes=tuple(values.items()), text=spelled))
    name = Name(steps)
    if len(name.text.encode()) > 230:  # it is a folder's name, and gets a prefix while it is written
        raise SettingError(f"{name.text!r} is too long for a folder's name; change fewer settings at once")
    return name


def _read_step(word: str, text: str) -> Step:
    role, body, methods = _methods_of(word)
    for name in methods:
        teaches = METHODS[name].kind == "distillation" and not name.startswith("none")
        if re.fullmatch(name + METHODS[name].rest, body) and (teaches or not role):
            return Step(name, body[len(name) + 1 :], role=role)
    if methods:
        raise SettingError(f"{text!r}: {word!r} is no step; write it as {EXAMPLES.get(methods[0], methods[0])}")
    raise SettingError(f"{text!r}: unknown step {word!r}; {nearest(body, [*METHODS, *LISTS])}")


def _methods_of(word: str) -> tuple[str, str, list[str]]:
    """Role and rest of a step's word, and the methods that it may be of, longest first."""
    body = word.removeprefix("assistant-").removesuffix("-by-assistant")
    role = {f"assistant-{body}": "assistant", f"{body}-by-assistant": "by-assistant"}.get(word, "")
    methods = [name for name in METHODS if f"{body}-".startswith(f"{name}-")]
    return role, body, sorted(methods, key=len, reverse=True)


def _check_order(steps: tuple[Step, ...], text: str) -> None:
    *before, last = steps
    if not before and last.kind not in ("teacher", "distillation"):
        raise SettingError(f"{text!r} begins with {last.method}; begin with teacher, none or an objective")
    if before and (last.kind == "teacher" or last.method.startswith("none") or last.role):
        raise SettingError(f"{text!r}: {last.method} can only stand first")
    if before and before[-1].kind in ("quantization", "scan"):
        raise SettingError(f"{text!r}: nothing can follow {before[-1].method}; put it last")
    if len(before) == 1 and before[0].method == "teacher" and last.kind == "distillation":
        raise SettingError(f"{text!r}: the teacher cannot learn from itself; cut it first, or leave `teacher` out")


def _read_spelled(setting: str, value: str, settings: Settings) -> Any:
    own = getattr(settings, setting, None)
    if own is not None and _spell(own) == value:
        return own
    if isinstance(own, list):
        value = value.replace("_", ",")
    return read_value(setting, value.replace("--", "/") if setting in ("student", "assistant") else value)


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "_".join(map(_spell, value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return re.sub(r"[^\w.-]", "-", Path(value).name)
    return "none" if value is None else str(value).replace("/", "--")


def expand_models(models: Iterable[str]) -> list[str]:
    """The names that the setting `models` lists, with lists' names replaced by what they stand for, each once."""
    found = [expand_models(LISTS[item]) if item in LISTS else [item] for item in models]
    return list(dict.fromkeys(name for names in found for name in names))


def plan_names(settings: Settings) -> dict[str, Name]:
    """Text -> name of every listed model and its prefixes, as they can be made; raises SettingError as `read_name`."""
    found = [TEACHER]
    for text in expand_models(settings.models):
        name = read_name(text, settings)
        if name.steps[0].role == "by-assistant":
            found.append(read_name(f"assistant-{name.steps[0].method}", settings))
        found += [Name(name.steps[:count]) for count in range(1, len(name.steps) + 1)]
    return {name.text: name for name in dict.fromkeys(found)}


def is_known(text: str, settings: Settings) -> bool:
    """Whether a list's or a model's name can be read here: a step may be known to one notebook, whose cell makes it."""
    try:
        return text in LISTS or bool(read_name(text, settings))
    except SettingError:
        return False


def main_path(settings: Settings) -> list[str]:
    """Teacher, student without distillation, and prefixes of the first model of the three steps, or of the longest."""
    names = [name for name in plan_names(settings).values() if name.kind != "scan"]
    kinds, controls = ["distillation", "pruning", "quantization"], {"uncut", "onnx-float32"}
    whole = [name for name in names if name.distilled and [step.kind for step in name.steps] == kinds]
    whole = [name for name in whole if controls.isdisjoint(step.method for step in name.steps)]
    end = whole[0] if whole else max(names, key=lambda name: len(name.steps))
    plain = [name for name in names if name.step.method == "none"]
    prefixes = [name for name in names if name.steps == end.steps[: len(name.steps)]]
    return list(dict.fromkeys(name.text for name in (TEACHER, *plain[:1], *prefixes)))


def kind_of(text: str) -> str:
    """What the last step of a name on disk is; "" where the method is not known here (a notebook's own)."""
    _, _, methods = _methods_of(text.split("+")[-1].split(",")[0])
    return METHODS[methods[0]].kind if methods else ""
