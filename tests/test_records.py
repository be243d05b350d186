import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from edgemin_utils import records
from edgemin_utils.atomic_folders import partial_folder
from edgemin_utils.chain import COST, TEACHER, main_path, plan_chain, pruning_key
from edgemin_utils.config import load_settings
from edgemin_utils.errors import MemoryShortage, SettingError, StageError, StorageError
from edgemin_utils.records import CHAIN_FILE, RECORD_FILE, find_records, open_chain, open_run, read_record, write_json

STUDENT, BASELINE = "distillation/minilmv2", "distillation/none"


def run_at(folder, **overrides):
    return open_run("sst2", "demo", 0, folder, {"train_rows": 20, **overrides})


def make(run, key, value=1):
    """A stage with next to nothing in it; returns how often it was computed by the length of its calls list."""

    def compute(folder):
        (folder / "model.txt").write_text(str(value))
        return {"value": value}

    return run.run_stage(key, compute)


def make_all(run, *keys):
    for key in keys or run.plan:
        make(run, key)


def states(run):
    return {key: run.state(key).status for key in run.plan}


def test_a_finished_stage_is_not_run_again(tmp_path):
    run = run_at(tmp_path)
    first = make(run, TEACHER)
    again = run.run_stage(TEACHER, lambda folder: pytest.fail("computed twice"))
    assert again.content == first.content and (first.folder / "model.txt").read_text() == "1"
    assert run_at(tmp_path).state(TEACHER).status == "done"
    assert first.folder == tmp_path / "sst2" / "seed-0" / "teacher" / "fine-tuned"


@pytest.mark.parametrize(
    "setting, value, stale",
    [
        ("teacher_learning_rate", 1e-5, {"teacher", "distillation", "pruning", "quantization", "measurement"}),
        ("student_layers", 1, {"distillation", "pruning", "quantization", "measurement"}),
        ("recovery_epochs", 3, {"pruned", "quantized-pruned", "measurement"}),
        ("latency_protocol", "full", {"measurement"}),
        ("evaluation_batch_size", 16, set()),
        ("scan_rows", 9, {"scan"}),
        ("relation_heads", 24, {"distilled", "measurement"}),
    ],
)
def test_one_changed_setting_reruns_that_stage_and_what_follows_and_nothing_else(tmp_path, setting, value, stale):
    make_all(run_at(tmp_path))
    changed = run_at(tmp_path, **{setting: value})
    for key, stage in changed.plan.items():
        kinds = {stage.kind}
        if stage.kind == "pruning":
            kinds.add("pruned" if stage.pruned else "scan")
        if stage.kind == "quantization" and stage.pruned:
            kinds.add("quantized-pruned")
        if stage.distilled:
            kinds.add("distilled")
        expected = "stale" if kinds & stale else "done"
        assert changed.state(key).status == expected, key


def test_a_stale_stage_says_why(tmp_path):
    make_all(run_at(tmp_path), TEACHER, BASELINE)
    changed = run_at(tmp_path, teacher_epochs=99)
    assert changed.state(TEACHER).reason == f"teacher_epochs was {run_at(tmp_path).settings.teacher_epochs}, now 99.0"
    assert changed.state(BASELINE).reason == f"{TEACHER} changed"
    other_rows = open_run("sst2", "demo", 0, tmp_path, {"train_rows": 30})
    assert "the data changed" in other_rows.state(TEACHER).reason


def test_models_that_only_earlier_settings_had_are_there_for_comparison(tmp_path):
    first, second = run_at(tmp_path), run_at(tmp_path, head_prune_ratio=0.5)
    make_all(first)
    make_all(second)

    def own(run):
        return {record.key for record in find_records(tmp_path) if not record.content["compared"]} == {
            key for key, stage in run.plan.items() if not stage.optional
        }

    assert set(first.plan) != set(second.plan) and own(second) and not own(first)
    assert open_chain(first.folder).plan.keys() == second.plan.keys()
    for key in first.plan:  # nothing is computed again but what the first run's other cut reaches
        first.run_stage(key, lambda folder, key=key: {} if key == COST else pytest.fail(f"{key} was made again"))
    assert own(first) and open_chain(first.folder).plan.keys() == first.plan.keys()


def test_a_record_calls_its_steps_as_the_chain_does_today(tmp_path):
    run = run_at(tmp_path)
    make_all(run)
    key = run.plan[COST].upstream[-1]
    path = run.stage_folder(key) / RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": ["an earlier name"]}))
    record = run.run_stage(key, lambda folder: pytest.fail(f"{key} was made again"))
    assert record.content["steps"] == json.loads(path.read_text())["steps"] == list(run.stage(key).steps)


def test_other_tasks_and_seeds_have_their_own_folders_and_fingerprints(tmp_path):
    runs = [open_run(task, "demo", seed, tmp_path) for task, seed in (("sst2", 0), ("sst2", 1), ("qqp", 0))]
    assert len({run.fingerprint(TEACHER) for run in runs}) == len({run.folder for run in runs}) == 3


def test_a_model_folder_counts_by_content_not_by_path(tmp_path):
    for name, content in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    prints = [run_at(tmp_path / "study", teacher=str(tmp_path / name)).fingerprint(TEACHER) for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    (tmp_path / "a" / "config.json").write_text("{} ")
    assert run_at(tmp_path / "study", teacher=str(tmp_path / "a")).fingerprint(TEACHER) not in prints


def test_stage_before_the_one_it_needs_names_the_notebook(tmp_path):
    run = run_at(tmp_path)
    with pytest.raises(StageError, match=r"stage teacher/fine-tuned is missing.*Run notebooks/01_teacher\.ipynb first"):
        make(run, STUDENT)
    assert find_records(tmp_path) == []


def test_a_stage_that_no_plan_has_is_refused(tmp_path):
    with pytest.raises(StageError, match="this chain has: teacher/fine-tuned"):
        run_at(tmp_path).fingerprint("teacher/other")


@pytest.mark.parametrize("damage", ["half", "version", "not an object", "missing key"])
def test_a_damaged_record_is_named_and_made_anew(tmp_path, damage):
    run = run_at(tmp_path)
    path = make(run, TEACHER).folder / "record.json"
    content = json.loads(path.read_text())
    path.write_text(
        {
            "half": path.read_text()[:100],
            "version": json.dumps({**content, "record_version": 99}),
            "not an object": "[]",
            "missing key": json.dumps({k: v for k, v in content.items() if k != "results"}),
        }[damage]
    )
    words = {"half": "half written", "version": "version 99", "not an object": "version None", "missing key": "lacks"}
    with pytest.raises(StageError, match=f"{words[damage]}.*run the same command again"):
        read_record(path.parent)
    assert run.state(TEACHER).status == "stale" and words[damage] in run.state(TEACHER).reason
    assert make(run, TEACHER, 2).results == {"value": 2} and run.state(TEACHER).status == "done"


def test_a_failing_stage_leaves_nothing_and_keeps_the_former_one(tmp_path):
    run = run_at(tmp_path)
    make(run, TEACHER)
    changed = run_at(tmp_path, teacher_epochs=99)

    def fail(folder):
        (folder / "model.txt").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        changed.run_stage(TEACHER, fail)
    assert run.state(TEACHER).status == "done"
    assert os.listdir(run.stage_folder(TEACHER).parent) == ["fine-tuned"]


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), r"CUDA out .* 2 GiB\)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPUAllocator"),
    ],
)
def test_too_little_memory_is_one_sentence_and_finished_stages_are_kept(tmp_path, error, said):
    run = run_at(tmp_path)
    make(run, TEACHER)

    def large(folder):
        raise error

    with pytest.raises(MemoryShortage, match=rf"stage {STUDENT} needs more memory .*{said}.*evaluation_batch_size=16"):
        run.run_stage(STUDENT, large)
    assert run.state(TEACHER).status == "done" and run.state(STUDENT).status == "missing"

    def other(folder):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="^shapes do not fit$"):
        run.run_stage(STUDENT, other)


def test_full_disk_is_one_sentence_and_finished_stages_are_kept(tmp_path, monkeypatch):
    run = run_at(tmp_path)
    make(run, TEACHER)

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="is full; finished stages are kept"):
        run.run_stage(BASELINE, full)
    assert run.state(TEACHER).status == "done" and run.state(BASELINE).status == "missing"
    monkeypatch.setattr(os, "fsync", lambda _file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError, match="is full"):
        make(run, BASELINE)
    monkeypatch.undo()
    assert make(run, BASELINE).results == {"value": 1}


def test_a_stage_whose_replacement_died_half_way_is_put_back(tmp_path):
    folder = make(run_at(tmp_path), TEACHER).folder
    gone = subprocess.Popen(["true"])
    gone.wait()
    aside = folder.parent / f".{folder.name}.old-{gone.pid}"
    folder.rename(aside)
    with pytest.raises(KeyboardInterrupt), partial_folder(folder):
        raise KeyboardInterrupt
    assert run_at(tmp_path).state(TEACHER).status == "done" and not aside.exists()


def test_kill_in_the_middle_of_a_stage_leaves_no_half_made_one(tmp_path):
    code = (
        "import sys, time; from edgemin_utils.records import open_run\n"
        "run = open_run('sst2', 'demo', 0, sys.argv[1], {'train_rows': 20})\n"
        "def compute(folder):\n"
        "    (folder / 'model.txt').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
        "run.run_stage('teacher/fine-tuned', compute)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = run_at(tmp_path)
    parent = run.stage_folder(TEACHER).parent
    assert run.state(TEACHER).status == "missing" and find_records(tmp_path) == []
    assert len(os.listdir(parent)) == 1  # what the dead process left
    make(run, TEACHER)
    assert os.listdir(parent) == ["fine-tuned"]


def test_records_are_found_in_order_without_partial_ones(tmp_path):
    for task, seed in (("sst2", 1), ("qqp", 0)):
        make_all(open_run(task, "demo", seed, tmp_path), TEACHER, BASELINE)
    partial = tmp_path / "qqp" / "seed-0" / "teacher" / ".fine-tuned.partial-1"
    partial.mkdir()
    write_json(partial / "record.json", read_record(tmp_path / "qqp/seed-0/teacher/fine-tuned").content)
    found = [(record.task, record.seed, record.key) for record in find_records(tmp_path)]
    assert found == [("qqp", 0, BASELINE), ("qqp", 0, TEACHER), ("sst2", 1, BASELINE), ("sst2", 1, TEACHER)]


def test_record_content_is_plain_json_with_numpy_and_nan_turned(tmp_path):
    import numpy as np

    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.arange(3), "c": float("nan"), "d": (1, tmp_path)})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": None,
        "d": [1, str(tmp_path)],
    }
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_record_says_where_and_how_long_it_ran(tmp_path):
    def slow(folder):
        time.sleep(0.05)
        return {}

    content = run_at(tmp_path).run_stage(TEACHER, slow).content
    assert 0.05 <= content["wall_seconds"] < 5 and content["environment"]["available_cores"] >= 1
    assert content["identity"]["settings"]["teacher_learning_rate"] == load_settings("demo").teacher_learning_rate


def test_the_plan_holds_the_whole_factorial_and_the_main_path():
    settings = load_settings("demo")
    plan = plan_chain(settings)
    combinations = {
        (stage.distilled, stage.pruned, stage.quantized)
        for stage in plan.values()
        if stage.student and stage.keeps_model
    }
    assert len(combinations) == 8
    assert list(main_path(settings)) == [
        TEACHER,
        STUDENT,
        "pruning/minilmv2+gradient-heads-0.2",
        "quantization/minilmv2+gradient-heads-0.2+dynamic-int8",
    ]
    seen = set()
    for key, stage in plan.items():
        assert set(stage.upstream) <= seen  # what a stage needs comes before it
        seen.add(key)
    assert set(plan[COST].upstream) == {key for key, stage in plan.items() if stage.keeps_model}
    small = plan_chain(load_settings("demo", {"factorial": False}))
    assert sum(stage.quantized for stage in small.values()) == 1
    both = load_settings("demo", {"feed_forward_prune_ratio": 0.25})
    assert pruning_key(both, "none") == "pruning/none+gradient-heads-0.2-neurons-0.25"


def test_unknown_task_or_setting_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(SettingError, match="sst2"):
        open_run("sst3", "demo", 0, tmp_path)
    with pytest.raises(SettingError, match="did you mean 'temperature'"):
        open_run("sst2", "demo", 0, tmp_path, {"temprature": 2})
    assert os.listdir(tmp_path) == []


def test_method_versions_make_old_records_stale(tmp_path, monkeypatch):
    make_all(run_at(tmp_path), TEACHER)
    monkeypatch.setitem(records.METHOD_VERSIONS, "teacher", records.METHOD_VERSIONS["teacher"] + 1)
    assert "computes this stage differently" in run_at(tmp_path).state(TEACHER).reason


def test_drive_is_mounted_on_colab_only_and_only_for_a_folder_on_it(tmp_path, monkeypatch):
    import types

    mounted = []
    drive = types.ModuleType("google.colab.drive")
    drive.mount = mounted.append
    run_at("/content/drive/MyDrive/edgemin")
    assert mounted == []
    for name, module in (
        ("google", types.ModuleType("google")),
        ("google.colab", types.ModuleType("google.colab")),
        ("google.colab.drive", drive),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    run_at(tmp_path)
    assert mounted == []
    run_at("/content/drive/MyDrive/edgemin")
    assert mounted == ["/content/drive"]


@pytest.mark.parametrize("text", ['{"profile": "de', "[]", '{"profile": "demo"}', ""])
def test_a_damaged_chain_file_is_named_and_written_anew(tmp_path, text):
    run = run_at(tmp_path)
    make(run, TEACHER)
    path = run.folder / CHAIN_FILE
    path.write_text(text)
    with pytest.raises(StageError, match=r"chain\.json is missing, half written or damaged; run the chain's command"):
        open_chain(run.folder)
    run.run_stage(TEACHER, lambda folder: pytest.fail("made again"))
    assert open_chain(run.folder).settings == run.settings


def test_a_chain_is_opened_again_under_its_own_settings(tmp_path):
    from edgemin_utils.analysis import chains_of

    first = run_at(tmp_path, scan_rows=7)
    make(first, TEACHER)
    other = open_run("qqp", "demo", 3, tmp_path, {"train_rows": 20, "factorial": False})
    make(other, TEACHER)
    assert open_chain(first.folder).settings == first.settings and open_chain(tmp_path / "mnli" / "seed-0") is None
    chains = list(chains_of(first).values())
    assert [(chain.task, chain.seed, chain.settings.factorial) for chain in chains] == [
        ("sst2", 0, True),
        ("qqp", 3, False),
    ]
    assert all(chain.state(TEACHER).status == "done" for chain in chains)
