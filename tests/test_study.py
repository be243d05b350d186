"""Stages on disk: whole or not at all, made once, never replaced silently; what makes them stale; what is refused."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from edgemin_utils import names, study
from edgemin_utils.errors import MemoryShortage, MethodRefused, SettingError, StageError, StorageError
from edgemin_utils.study import Chain, code_digest, code_of, find_chains, find_records, open_chain

MODELS = "teacher,none,minilmv2+heads-0.2+int8"
PARAMETERS = [*(("seed", value, "whole number") for value in (1.5, True, -1)), ("overrides", [1], "-y .overrides")]
PARAMETERS += [("replace", "no", "-y .replace: true")]
PARAMETERS += [("task", 3, "task is 3"), ("task", "sst3", "sst2"), ("overrides", {"models": "minilmv3"}, "minilmv2")]


def chain_in(folder: Path, replace: bool = False, **overrides) -> Chain:
    return open_chain("sst2", "demo", 0, folder, {"models": MODELS, **overrides}, replace)


def make_all(chain: Chain) -> list[str]:
    """Makes every stage with a file instead of a model; returns the names of those that were made."""
    made = []
    for kind in ("teacher", "distillation", "pruning", "quantization"):
        for stage in chain.todo(kind):
            with stage:
                (stage.folder / "model.txt").write_text(stage.name)
                stage.record({"metrics": {"dev": {"accuracy": 0.5}}})
            made.append(stage.name)
    return made


def states(chain: Chain) -> dict[str, str]:
    return {name: stage.state.status for name, stage in chain.plan.items()}


@pytest.fixture
def chain(tmp_path) -> Chain:
    return chain_in(tmp_path)


def test_stages_are_made_once_in_order(chain, tmp_path) -> None:
    assert make_all(chain) == ["teacher", "none", "minilmv2", "minilmv2+heads-0.2", "minilmv2+heads-0.2+int8"]
    assert make_all(chain_in(tmp_path)) == []
    record = chain.read("minilmv2+heads-0.2")
    assert (record.model, record.kind, record.task, record.seed) == ("minilmv2+heads-0.2", "pruning", "sst2", 0)
    assert record.results["metrics"]["dev"]["accuracy"] == 0.5 and record.seconds >= 0
    assert [item.model for item in find_records(tmp_path)] == sorted(chain.plan)
    assert [found.settings for found in find_chains(tmp_path)] == [chain.settings]
    assert all(row["status"] == "done" for row in study.study_status([chain]))


def test_a_changed_setting_stands_beside_and_going_back_finds_everything(tmp_path) -> None:
    make_all(chain_in(tmp_path))
    assert set(states(chain_in(tmp_path, evaluation_batch_size=8, dev_rows=None)).values()) == {"done"}  # unfelt
    changed = chain_in(tmp_path, relation_heads=4)
    assert make_all(changed) == [f"minilmv2,relation_heads=4{rest}" for rest in ("", "+heads-0.2", "+heads-0.2+int8")]
    assert make_all(chain_in(tmp_path)) == []
    assert len(find_records(tmp_path)) == 8


def test_a_model_of_a_step_that_a_notebook_defines_breaks_nothing_elsewhere(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as cell:
        cell.setitem(names.METHODS, "mine", names.METHODS["logits"])
        assert make_all(open_chain("sst2", "demo", 0, tmp_path, {"models": "none,mine,mine+heads-0.2"}))[2] == "mine"
    (chain,) = find_chains(tmp_path)
    assert list(chain.plan) == ["teacher", "none"] and set(states(chain).values()) == {"done"}
    unknown = [row["model"] for row in study.study_status([chain]) if row["status"] == "unknown"]
    assert unknown == ["mine", "mine+heads-0.2"]


@pytest.mark.parametrize(("overrides", "reason"), [({"train_rows": 50}, "the rows changed"),
    ({"teacher_epochs": 1}, r"teacher_epochs was \d\.0, now 1\.0")])  # fmt: skip
def test_nothing_finished_is_replaced_silently(tmp_path, overrides: dict, reason: str) -> None:
    make_all(chain_in(tmp_path))
    with pytest.raises(StageError, match=f"{reason}.*--replace .* another --output-dir.* go back"):
        list(chain_in(tmp_path, **overrides).todo("teacher"))
    assert set(states(chain_in(tmp_path)).values()) == {"done"}
    assert make_all(chain_in(tmp_path, replace=True, **overrides))[0] == "teacher"
    assert set(states(chain_in(tmp_path, **overrides)).values()) == {"done"}
    assert states(chain_in(tmp_path))["none"] == "stale"


def test_changed_code_makes_stale_what_it_computes_and_says_so(tmp_path, monkeypatch) -> None:
    make_all(chain_in(tmp_path))
    real, edited = study.code_of, {"minilmv2": {"distillation/relations.py": "0" * 16}}
    monkeypatch.setattr(study, "code_of", lambda kind, one, *more: real(kind, one, *more) | edited.get(one, {}))
    chain = chain_in(tmp_path)
    assert states(chain)["teacher"] == states(chain)["none"] == "done"
    assert states(chain)["minilmv2"] == states(chain)["minilmv2+heads-0.2+int8"] == "stale"
    assert "the code of distillation/relations.py changed" in chain.plan["minilmv2"].state.reason


def test_code_of_a_stage_reaches_what_it_uses() -> None:
    losses = "distillation/losses.py"
    assert [losses in code_of("distillation", *one) for one in (("minilmv2", True), ("none", False))] == [True, False]
    assert "training.py" in (teacher := code_of("teacher", "teacher"))
    assert not any(file.startswith(("distillation/", "pruning/")) for file in teacher)
    assert {"pruning/cut.py", "encoders.py"} <= code_of("pruning", "heads").keys()
    assert {"quantization/onnx_graph.py", "quantization/reconstruction.py"} <= code_of("quantization", "int8").keys()


def test_comments_and_docstrings_are_no_code() -> None:
    assert code_digest('def f(x):\n    """Says."""\n    return x + 1  # why\n') == code_digest("def f(x): return x + 1")
    assert code_digest("def f(x): return x + 1") != code_digest("def f(x): return x + 2")


def test_a_refusal_is_the_stage_s_result_and_reaches_what_follows(chain) -> None:
    with chain.plan["minilmv2"] as stage:
        (stage.folder / "half.txt").write_text("half")
        raise MethodRefused("8 relation heads do not divide 50")
    assert make_all(chain) == ["teacher", "none"]
    assert chain.read("minilmv2").refused == "8 relation heads do not divide 50"
    assert chain.read("minilmv2+heads-0.2+int8").refused.startswith("minilmv2+heads-0.2 was refused: minilmv2 was")
    assert [path.name for path in (chain.folder / "minilmv2").iterdir()] == ["record.json"]


def test_a_failed_block_leaves_nothing(chain) -> None:
    shortage, full = RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(28, "No space left on device")
    for error, expected in ((ValueError("broken"), ValueError), (shortage, MemoryShortage), (full, StorageError)):
        with pytest.raises(expected), chain.plan["teacher"] as stage:
            (stage.folder / "model.txt").write_text("half")
            raise error
    with pytest.raises(StageError, match="nothing was recorded"), chain.plan["teacher"]:
        pass
    assert [path.name for path in chain.folder.iterdir() if path.is_dir()] == []


def test_a_damaged_record_is_made_anew(chain, tmp_path) -> None:
    make_all(chain)
    (chain.folder / "none" / "record.json").write_text('{"version": 3, "mod')
    assert chain.plan["none"].state.status == "missing" and "damaged" in chain.plan["none"].state.reason
    assert make_all(chain_in(tmp_path)) == ["none"]


def make_slowly(folder: str, seconds: float = 0.5) -> None:
    with chain_in(Path(folder)).plan["teacher"] as stage:
        (stage.folder / "model.txt").write_text(str(os.getpid()))
        time.sleep(seconds)
        stage.record({"process": os.getpid()})


def test_two_runs_on_one_folder_do_not_harm_each_other(chain, tmp_path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert [*pool.map(make_slowly, [str(tmp_path)] * 2)] == [None, None]
    record = chain.read("teacher")
    assert (record.folder / "model.txt").read_text() == str(record.results["process"])
    assert [path.name for path in chain.folder.iterdir() if path.is_dir()] == ["teacher"]


def test_what_another_run_made_meanwhile_is_not_replaced(chain, tmp_path) -> None:
    other = chain_in(tmp_path, teacher_epochs=2).plan["teacher"]
    with ThreadPoolExecutor(1) as pool:
        with chain.plan["teacher"] as stage:
            waiting = pool.submit(other.__enter__)
            time.sleep(0.3)
            stage.record({"mine": 1})
        assert isinstance(waiting.exception(), StageError) and chain.read("teacher").results == {"mine": 1}


def test_a_killed_run_leaves_nothing_half_made(chain, tmp_path) -> None:
    code = "import sys; sys.path[:0] = ['tests']; from test_study import make_slowly; make_slowly(sys.argv[1], 60)"
    run = subprocess.Popen([sys.executable, "-c", code, tmp_path])
    deadline = time.time() + 60
    while not list(chain.folder.glob(".teacher.partial/model.txt")) and time.time() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (chain.folder / "teacher").exists()
    make_all(chain)
    assert set(states(chain).values()) == {"done"} and not list(chain.folder.glob(".*partial*"))


def test_an_old_folder_is_put_back_where_a_run_died_between_two_renames(chain) -> None:
    make_all(chain)
    (chain.folder / "none").rename(chain.folder / ".none.old")
    with chain.plan["none"] as stage:
        stage.record({"other": 1})
    assert "other" not in chain.read("none").results


@pytest.mark.parametrize(("name", "value", "said"), PARAMETERS)
def test_parameters_that_cannot_be_are_one_sentence(tmp_path, name: str, value: object, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        open_chain(output_dir=tmp_path, **{name: value})


def test_chapters_and_orders_that_cross_them(tmp_path) -> None:
    chain = open_chain("sst2", "demo", 0, tmp_path, {"models": "honest,proposal,minilmv2+int8"})
    crossing = [name for name, stage in chain.plan.items() if stage.crossing]
    assert "minilmv2+int8" not in crossing and "minilmv2+qat-int8" not in crossing
    assert "minilmv2+qat-int8+heads-0.2" in crossing and any(name.endswith("minilmv2") for name in crossing)
    names = ["minilmv2+scan-heads", "minilmv2+heads-0.2+sensitivity", "minilmv2+qat-int8+sensitivity"]
    chain = open_chain("sst2", "demo", 0, tmp_path, {"models": names})
    assert [(chain.plan[name].chapter, chain.plan[name].crossing) for name in names] == [(3, False), *[(4, False)] * 2]
    for kind, missing in (("scan", "minilmv2"), ("sensitivity", "minilmv2.heads-0.2")):
        with pytest.raises(StageError, match=f"{missing} is missing"):
            next(chain.todo(kind))
