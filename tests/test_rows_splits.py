"""Where rows come from, how they are split, and the hold-out that shares no text with what is trained on."""

import json
import random
import re
import shutil
import statistics
import time
from pathlib import Path
from unittest.mock import Mock

import datasets
import huggingface_hub
import pandas
import pytest

from edgemin_utils.corpus.embedded import make_corpus
from edgemin_utils.errors import DataError, MethodRefused, SettingError
from edgemin_utils.rows import splits, tasks
from edgemin_utils.rows.splits import SharedTexts, load_task_data
from edgemin_utils.rows.tasks import rows_fingerprint
from edgemin_utils.settings import load_settings


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, "utf-8")
    return folder.parent


def load(glue, task="sst2", seed=0, transfer=False, **overrides):
    settings = load_settings("demo", {"data_dir": str(glue), "holdout_fraction": 0, **overrides})
    return load_task_data(settings, task, seed, transfer)


def by_row(rows):
    return sorted(zip(rows["row"], *(rows[name] for name in rows.column_names if name != "row"), strict=True))


@pytest.fixture
def glue(tmp_path):
    """An SST-2 folder whose 200 train rows are grouped by label (150 positive) and whose 20 dev rows alternate."""
    train = "sentence\tlabel\n" + "".join(f"train text {index}\t{int(index < 150)}\n" for index in range(200))
    dev = "sentence\tlabel\n" + "".join(f"dev text {index}\t{index % 2}\n" for index in range(20))
    return write(tmp_path / "glue" / "SST-2", train__tsv=train, dev__tsv=dev)


def test_sst2_tsv_with_decimals_and_quotation_marks(tmp_path):
    train = 'sentence\tlabel\n"a fine film \t1.0\ndull\t0\nso so\t-1\n'
    data = load(write(tmp_path / "SST-2", train__tsv=train, dev__tsv="sentence\tlabel\nfine\t1\n"))
    assert by_row(data.train) == [(0, '"a fine film ', 1), (1, "dull", 0)]
    assert data.train.features["label"].names == ["negative", "positive"]
    assert data.source == "SST-2 from a folder (train.tsv, dev.tsv)"
    assert any(note.startswith("train: 1 of 3 rows without a label ('-1'") for note in data.notes)


def test_mnli_tsv_reads_columns_by_name_and_says_what_is_missing(tmp_path):
    head = "index\tgenre\tsentence1_parse\tsentence1\tsentence2\tlabel1\t"
    train = head + "gold_label\n0\tn/a\t(p)\tp\th\tn/a\tcontradiction\n1\tn/a\t(p)\tp2\th2\tn/a\tentailment\n"
    dev = head + "label2\tgold_label\n0\tn/a\t(q)\tq\ti\tneutral\tentailment\t-\n"
    dev += "1\tn/a\t(q)\tq2\ti2\tneutral\tneutral\tentailment\n"
    data = load(write(tmp_path / "mnli", train__tsv=train, dev_matched__tsv=dev), "mnli")
    assert by_row(data.train) == [(0, "p", "h", 2), (1, "p2", "h2", 0)]
    # The row without an agreed label is left out; the one after it keeps its place in the file.
    assert by_row(data.dev["dev_matched"]) == [(1, "q2", "i2", 0)]
    assert "dev_mismatched: not in the folder, so not measured" in data.notes
    assert any("dev_matched: 1 of 2 rows without a label ('-'" in note for note in data.notes)


@pytest.mark.parametrize("layout", ["shards", "save_to_disk"])
def test_named_column_layouts_give_the_same_rows(tmp_path, layout):
    texts = {"hypothesis": ['h, "quoted"', "zwölf", "two\nlines"], "premise": ["p1", "NA", "p3"]}
    frame = pandas.DataFrame({**texts, "idx": [7, 8, 9], "label": [1, 0, 2]})
    folder = tmp_path / "mnli"
    folder.mkdir()
    # The saved data set counts its labels in another order than the task: they are matched by name.
    saved = datasets.Dataset.from_pandas(frame.assign(label=[0, 2, 1]), preserve_index=False)
    saved = saved.cast_column("label", datasets.ClassLabel(names=["neutral", "contradiction", "entailment"]))
    for split in ("train", "validation_matched", "validation_mismatched"):
        if layout == "save_to_disk":
            saved.save_to_disk(str(folder / split), num_shards=2)
        else:
            saved.select([0]).to_parquet(str(folder / f"{split}-00000-of-00002.parquet"))
            saved.select([1, 2]).to_parquet(str(folder / f"{split}-00001-of-00002.parquet"))
    frame.assign(label=-1).to_parquet(folder / "test_matched-00000-of-00001.parquet")
    data = load(tmp_path, "mnli")
    for rows in (data.train, *data.dev.values()):
        assert by_row(rows) == [(0, "p1", 'h, "quoted"', 1), (1, "NA", "zwölf", 0), (2, "p3", "two\nlines", 2)]
    assert data.notes == ("train: 3 of 3 rows trained on, 0 held out to choose settings",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"needs one folder for SST-2, called SST-2 or sst2; there is nothing"),
        ({"mnli/train.tsv": ""}, "needs one folder for SST-2, .*; there is mnli"),
        ({"SST-2/train.tsv": ""}, r"no dev split; looked for dev\.tsv or validation\.parquet .*there is train\.tsv"),
        ({"SST-2/train.tsv": "", "SST-2/train.csv": ""}, r"train is there twice .*\(train\.csv, train\.tsv\)"),
        ({"SST-2/train-00001-of-00002.parquet": ""}, r"train .* lacks shards \(train-00001-of-00002\.parquet\)"),
        ({"SST-2/train.tsv": "sentence\tlabel\na\t1\nb\tnegativ\n"}, r"\.tsv, line 3: unknown label 'negativ'; known"),
        ({"SST-2/train.tsv": "sentence\tlabel\na\t0\n"}, "label 'positive' occurs in dev but in no train row"),
        ({"sst2/train.jsonl": '{"sentence": ["a"], "label": 1}'}, r"train\.jsonl, line 1: column 'sentence' holds"),
        ({"sst2/train.jsonl": '{"sentence": "\\ud83d", "label": 1}'}, "line 1: column 'sentence' holds"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, files, message):
    for name, content in files.items():
        write((tmp_path / name).parent, **{Path(name).name: content})
        if content:
            write((tmp_path / name).parent, dev__tsv="sentence\tlabel\na\t1\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_the_hub_is_read_at_its_pinned_revision_or_named(tmp_path, monkeypatch):
    download = Mock(side_effect=[str(tmp_path), FileNotFoundError()])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(tasks, "reach_hub", lambda *_: False)
    write(tmp_path / "sst2", train__csv="sentence,label\na,1\nb,0\n", validation__csv="sentence,label\nc,1\n")
    data = load("", data_source="hub")
    wanted = {"revision": tasks.GLUE_REVISION, "allow_patterns": "sst2/*", "local_files_only": True}
    download.assert_called_once_with("nyu-mll/glue", repo_type="dataset", **wanted)
    assert "nyu-mll/glue (bcdcba79)" in data.source and len(data.train) == 2
    with pytest.raises(DataError, match=r"\(sst2\) is not in the cache and the hub cannot be reached.*--data-dir"):
        load("", data_source="hub")


@pytest.mark.parametrize(
    ("overrides", "used"),
    [({"train_fraction": 0.299}, 59), ({"train_fraction": 0.29}, 58), ({"train_rows": 33}, 33), ({}, 200),
     ({"train_fraction": 0.5, "train_rows": 30}, 30), ({"train_fraction": 0.1, "train_rows": 150}, 20)],
)  # fmt: skip
def test_rows_used_and_held_out(glue, overrides, used):
    data = load(glue, holdout_fraction=0.1, **overrides)
    # The hold-out comes from rows that are not used, if there are any; else 10 % of 150 positive and 50 negative rows.
    train, aside = (180, 20) if used == 200 else (used, round(0.1 * used))
    assert (len(data.train), len(data.holdout)) == (train, aside)
    assert not set(data.train["row"]) & set(data.holdout["row"])
    assert f"train: {train} of 200 rows trained on, {aside} held out to choose settings" in data.notes
    if used == 200:
        assert sorted(data.holdout["label"]) == [0] * 5 + [1] * 15


def test_the_seed_decides_train_and_not_dev(glue):
    first, again, other = load(glue, seed=1, dev_rows=7), load(glue, seed=1, dev_rows=7), load(glue, seed=2, dev_rows=7)
    assert first.train["row"] == again.train["row"] != other.train["row"]
    assert first.train["sentence"] == [f"train text {row}" for row in first.train["row"]]
    assert first.dev["dev"]["row"] == other.dev["dev"]["row"] == sorted(first.dev["dev"]["row"])
    assert len(first.dev["dev"]) == 7 and first.fingerprint == other.fingerprint
    assert "dev: 7 of 20 rows used" in first.notes
    # A smaller sample is part of a larger one.
    assert load(glue, seed=1, train_rows=60).train["row"][:20] == load(glue, seed=1, train_rows=20).train["row"]
    with pytest.raises(DataError, match="the 1 train rows drawn out of 200 hold fewer than two labels; raise"):
        load(glue, train_rows=1)


def shares(one, other):
    """The rule, written again: equal, or four words and more of one inside the other."""
    one, other = (" ".join(re.findall(r"\w+", text.lower())) for text in (one, other))
    short, long = sorted((one, other), key=len)
    return one == other or (len(short.split()) >= 4 and f" {short} " in f" {long} ")


def phrases(count, seed=0):
    """Sentences and, as SST-2 has them, many phrases of each."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        known = "the a film was very dull bright story and we saw it long warm".split()
        words = [draw.choice(known) for _ in range(14)]
        words[draw.randrange(14)] = f"name{number}"
        rows.append((" ".join(words) + " .", number % 2))
        for _ in range(5):
            start = draw.randrange(8)
            rows.append((" ".join(words[start : start + draw.randint(2, 7)]), number % 2))
    return pandas.DataFrame(rows, columns=["sentence", "label"])


def test_shared_texts_against_every_pair():
    frame = phrases(25)
    shared, texts = SharedTexts(frame, ["sentence"]), list(frame["sentence"])
    repeated = frame.assign(sentence=["so so so so " * 20_000, *texts[1:]])  # which took minutes
    assert not any(whole == 0 for _, whole in SharedTexts(repeated, ["sentence"]).inside)
    others = range(0, len(texts), 7)
    expected = [row for row in range(len(texts)) if not any(shares(texts[row], texts[other]) for other in others)]
    assert shared.apart_from(range(len(texts)), others) == expected and 0 < len(expected) < len(texts)
    group = {row: number for number, rows in enumerate(shared.groups()) for row in rows}
    linked = [(a, b) for a in group for b in group if a < b and shares(texts[a], texts[b])]
    assert linked and all(group[a] == group[b] for a, b in linked)
    # Pairs share text when one of theirs is shared.
    frame = pandas.DataFrame({"a": ["p", "p", "q", "r"], "b": ["h", "i", "j", "h"], "label": [0, 1, 0, 1]})
    shared = SharedTexts(frame, ["a", "b"])
    assert shared.apart_from([1, 2, 3], [0]) == [2]
    assert shared.groups() == [[0, 1, 3], [2]]


@pytest.mark.parametrize("fraction", [0.1, 1.0])
def test_phrases_do_not_leak_into_the_holdout(tmp_path, fraction):
    frame = phrases(400)
    folder = tmp_path / "sst2"
    folder.mkdir()
    frame.to_csv(folder / "train.csv", index=False)
    frame.iloc[:2].to_csv(folder / "dev.csv", index=False)
    data = load(tmp_path, train_fraction=fraction, holdout_fraction=0.15)
    assert len(data.holdout) >= 0.7 * 0.15 * fraction * len(frame)
    train = list(data.train["sentence"])
    assert not [text for text in data.holdout["sentence"] if any(shares(text, other) for other in train)]
    if fraction < 1:  # whole sentences, though most rows are phrases
        assert min(len(text.split()) for text in data.holdout["sentence"]) == 15
        assert statistics.median(len(text.split()) for text in train) < 8


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ({0: 100, 1: 3}, 0.05, {0: 5, 1: 1}),  # at least one row
        ({0: 100, 1: 1}, 0.05, {0: 5}),  # the only row stays
        ({0: 2, 1: 2}, 0.99, {0: 1, 1: 1}),  # and never all of them
    ],
)
def test_held_out_rows_by_label(counts, fraction, expected):
    labels = [label for label, count in counts.items() for _ in range(count)]
    frame = pandas.DataFrame({"text": [f"text {index}" for index in range(len(labels))], "label": labels})
    rest, share, shared = splits.hold_out(frame.sample(frac=1, random_state=0), fraction, ["text"])
    assert share["label"].value_counts().to_dict() == expected and shared == 0
    assert sorted([*rest.index, *share.index]) == list(range(len(frame)))
    # One text for all rows: they are held out all the same, and counted.
    assert splits.hold_out(frame.assign(text="same"), fraction, ["text"])[2] == sum(expected.values())


def test_the_fingerprint_follows_content_and_not_paths(glue, tmp_path):
    before = load(glue).fingerprint
    assert len(before) == 16 and int(before, 16) >= 0
    shutil.copytree(glue, tmp_path / "moved")
    assert load(tmp_path / "moved").fingerprint == before == load(glue, teacher_epochs=1).fingerprint
    changes = [{"train_fraction": 0.5}, {"dev_rows": 9}, {"holdout_fraction": 0.2}, {"encoding": "latin-1"}]
    assert len({before, *(load(glue, **change).fingerprint for change in changes)}) == 5
    write(glue / "SST-2", dev__tsv="sentence\tlabel\nanother\t1\n")
    assert load(glue).fingerprint != before


def test_embedded_rows_are_the_corpus_and_fingerprints_follow_it():
    data, rows = load_task_data(load_settings("demo"), "qqp", 0), make_corpus("qqp")["dev"]
    assert by_row(data.dev["dev"]) == [(number, *row.values()) for number, row in enumerate(rows)]
    assert "synthetic" in data.source and tuple(data.dev) == data.task.dev_splits
    start = time.perf_counter()
    asked = [("demo", {}, "sst2"), ("demo", {}, "qqp"), ("demo", {"corpus_seed": 1}, "sst2"), ("paper", {}, "sst2")]
    prints = [rows_fingerprint(load_settings(profile, overrides), task) for profile, overrides, task in asked]
    assert time.perf_counter() - start < 0.5 and len(set(prints)) == 4
    with pytest.raises(SettingError, match="did you mean 'qqp'"):
        rows_fingerprint(load_settings("demo"), "qpp")


def test_statistics(glue):
    write(glue / "SST-2", dev__tsv="sentence\tlabel\none\t1\none two\t1\none two  three four \t0\n")
    table = splits.task_statistics(load(glue))
    assert table["train"]["labels"] == {"negative": 50, "positive": 150}
    # With three values the 90 % quantile lies 80 % of the way from the second to the third.
    assert table["dev"]["words"] == pytest.approx({"median": 2, "p90": 2 + 0.8 * 2, "p99": 2 + 0.98 * 2, "longest": 4})
    assert table["holdout"]["rows"] == 0 and table["holdout"]["words"]["median"] is None
    assert json.loads(json.dumps(table)) == table


def test_unused_and_transfer_texts(glue):
    pairs = "question1\tquestion2\tis_duplicate\n" + "".join(f"p {row}\tq {row}\t{row % 2}\n" for row in range(200))
    write(glue / "qqp", train__tsv=pairs, dev__tsv=pairs.replace(" ", " other "))
    overrides = {"train_rows": 100, "holdout_fraction": 0.2}
    for task, columns in (("sst2", ["sentence"]), ("qqp", ["question1", "question2"])):
        plain, whole = load(glue, task, 3, **overrides), load(glue, task, 3)
        known = {text for rows in (plain.train, plain.holdout) for column in columns for text in rows[column]}
        assert sorted(plain.unused) == sorted({text for column in columns for text in whole.train[column]} - known)
    data = load(glue, "qqp", 3, transfer=True, transfer_rows=50, **overrides)
    assert len(data.transfer) == 50 and set(data.transfer["label"]) == {-1}
    assert not set(data.transfer["row"]) & {*data.train["row"], *data.holdout["row"]}
    assert data.train["row"] == plain.train["row"] and len(plain.transfer) == 0
    assert "transfer: 50 of 50 texts without labels; labelled rows hold the others" in data.notes
    with pytest.raises(MethodRefused, match="every train row of SST-2 is in use"):
        load(glue, transfer=True, transfer_rows=5)


def test_transfer_texts_come_from_a_file_of_ones_own(tmp_path, glue):
    file = tmp_path / "texts.csv"
    file.write_text('sentence\nfirst words\n""\n" "\n"dev text 3"\n"train text 3"\nlast words\n')
    data = load(glue, transfer=True, transfer_file=str(file))
    assert data.transfer["sentence"] == ["first words", "last words"] and data.transfer["label"] == [-1, -1]
    assert "transfer: 2 of 4 texts without labels; labelled rows hold the others" in data.notes
    file.write_text("text\nfirst words\n")
    with pytest.raises(DataError, match="no column 'sentence'"):
        load(glue, transfer=True, transfer_file=str(file))
