"""Where rows come from, how they are split, and the hold-out that shares no text with what is trained on."""

import json
import random
import re
import shutil
import statistics
import time
from pathlib import Path

import datasets
import huggingface_hub
import pandas
import pytest

from edgemin_utils.corpus import embedded
from edgemin_utils.errors import DataError, MethodRefused, SettingError
from edgemin_utils.rows import sources, splits
from edgemin_utils.rows.splits import SharedTexts, load_task_data, rows_fingerprint, unused_texts
from edgemin_utils.settings import load_settings

PARSES = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
MNLI_HEADER = "\t".join(f"index promptID pairID genre {PARSES} sentence1 sentence2 label1".split()) + "\t"


def mnli_line(premise, hypothesis, label, annotators=("n/a",)):
    return "\t".join(["0", *["n/a"] * 7, premise, hypothesis, *annotators, label]) + "\n"


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
    train = "".join(f"train text {index}\t{int(index < 150)}\n" for index in range(200))
    dev = "".join(f"dev text {index}\t{index % 2}\n" for index in range(20))
    head = "sentence\tlabel\n"
    return write(tmp_path / "glue" / "SST-2", train__tsv=head + train, dev__tsv=head + dev)


@pytest.fixture
def small_corpus(monkeypatch):
    """Embedded rows of three words each, so that the tests do not depend on the grammars."""

    def make(name, seed):
        columns, splits = embedded.COLUMNS[name], ("train", "dev")
        texts = {split: [{name: f"{split} {name} {row}" for name in columns} for row in range(240)] for split in splits}
        return {split: [row | {"label": index % 2} for index, row in enumerate(rows)] for split, rows in texts.items()}

    monkeypatch.setattr(embedded, "make_corpus", make)


def test_sst2_tsv_with_decimals_and_quotation_marks(tmp_path):
    train = 'sentence\tlabel\n"a fine film \t1.0\ndull\t0\nso so\t-1\n'
    data = load(write(tmp_path / "SST-2", train__tsv=train, dev__tsv="sentence\tlabel\nfine\t1\n"))
    assert by_row(data.train) == [(0, '"a fine film ', 1), (1, "dull", 0)]
    assert data.train.features["label"].names == ["negative", "positive"]
    assert data.source == "SST-2 from a folder (train.tsv, dev.tsv)"
    assert any(note.startswith("train: 1 of 3 rows without a label ('-1'") for note in data.notes)


def test_mnli_tsv_reads_columns_by_name_and_says_what_is_missing(tmp_path):
    lines = [mnli_line(*texts) for texts in (("p", "h", "contradiction"), ("p2", "h2", "entailment"))]
    annotators = ("neutral", "entailment", "neutral", "neutral", "neutral")
    dev = mnli_line("q", "i", "-", annotators) + mnli_line("q2", "i2", "entailment", annotators)
    header = MNLI_HEADER + "label2\tlabel3\tlabel4\tlabel5\tgold_label\n"
    train = MNLI_HEADER + "gold_label\n" + "".join(lines)
    data = load(write(tmp_path / "mnli", train__tsv=train, dev_matched__tsv=header + dev), "mnli")
    assert by_row(data.train) == [(0, "p", "h", 2), (1, "p2", "h2", 0)]
    # The row without an agreed label is left out; the one after it keeps its place in the file.
    assert by_row(data.dev["dev_matched"]) == [(1, "q2", "i2", 0)]
    assert "dev_mismatched: not in the folder, so not measured" in data.notes
    assert any("dev_matched: 1 of 2 rows without a label ('-'" in note for note in data.notes)


@pytest.mark.parametrize("layout", ["csv", "jsonl", "parquet", "shards", "save_to_disk"])
def test_named_column_layouts_give_the_same_rows(tmp_path, layout):
    texts = {"hypothesis": ['h, "quoted"', "zwölf", "two\nlines"], "premise": ["p1", "NA", "p3"]}
    frame = pandas.DataFrame({**texts, "idx": [7, 8, 9], "label": [1, 0, 2]})
    folder = tmp_path / "mnli"
    folder.mkdir()
    # The saved data set counts its labels in another order than the task: they are matched by name.
    names = ["neutral", "contradiction", "entailment"]
    kinds = {name: datasets.Value("string") for name in ("hypothesis", "premise")}
    features = datasets.Features({**kinds, "idx": datasets.Value("int32"), "label": datasets.ClassLabel(names=names)})
    saved = datasets.Dataset.from_dict(frame.assign(label=[0, 2, 1]).to_dict("list"), features=features)
    for split in ("train", "validation_matched", "validation_mismatched"):
        if layout == "csv":
            frame.to_csv(folder / f"{split}.csv", index=False)
        elif layout == "jsonl":
            frame.to_json(folder / f"{split}.jsonl", orient="records", lines=True)
        elif layout == "save_to_disk":
            saved.save_to_disk(str(folder / split), num_shards=2)
        elif layout == "parquet":
            saved.to_parquet(str(folder / f"{split}.parquet"))
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
        ({"SST-2/train.tsv": "sentence\tlabel\na\t1\nb\t1\n"}, "all train rows have the label 'positive'"),
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
    asked = []

    def download(repository, **options):
        asked.append((repository, options["revision"], options["allow_patterns"], options["local_files_only"]))
        if len(asked) > 1:
            raise FileNotFoundError
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(sources, "reach_hub", lambda *_: False)
    write(tmp_path / "sst2", train__csv="sentence,label\na,1\nb,0\n", validation__csv="sentence,label\nc,1\n")
    settings = load_settings("demo", {"data_source": "hub", "holdout_fraction": 0})
    data = load_task_data(settings, "sst2", 0)
    assert asked == [("nyu-mll/glue", sources.GLUE_REVISION, "sst2/*", True)]
    assert "nyu-mll/glue (bcdcba79)" in data.source and len(data.train) == 2
    with pytest.raises(DataError, match=r"\(sst2\) is not in the cache and the hub cannot be reached.*--data-dir"):
        load_task_data(settings, "sst2", 0)


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


def own_file(path, rows):
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return {"task_file": str(path), "text_columns": "text"}


def test_own_file_gives_up_the_same_dev_rows_for_every_seed_and_is_used_whole(tmp_path):
    own = own_file(tmp_path / "own.csv", [(f"text {index}", "ab"[index % 2]) for index in range(50)])
    first, other = (load_task_data(load_settings("laptop", own), "own", seed) for seed in (0, 1))
    assert first.dev["dev"]["row"] == other.dev["dev"]["row"] and sorted(first.dev["dev"]["label"]) == [0] * 5 + [1] * 5
    assert len(first.train) + len(first.holdout) == 40
    assert "dev: 10 of 50 rows, since no dev file was given" in first.notes
    with pytest.raises(DataError, match="every label has a single row, so none can be dev"):
        own_file(tmp_path / "own.csv", [("x", "a"), ("y", "b")])
        load_task_data(load_settings("demo", own), "own", 0)


def test_repeated_texts_and_missing_labels_are_said(tmp_path):
    own = own_file(tmp_path / "own.csv", [(f"text {index}", "ab"[index % 2]) for index in range(40)] + [("alone", "c")])
    dev = own_file(tmp_path / "dev.csv", [("text 3", "b"), ("text 5", "b"), ("new", "a")])["task_file"]
    data = load_task_data(load_settings("demo", {**own, "dev_file": dev}), "own", 0)
    assert "dev: 2 of 3 rows have the text of a train row, which flatters" in data.notes
    assert {"holdout: no row with label 'c'", "dev: no row with label 'c'"} <= set(data.notes)


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
    shared = SharedTexts(frame, ["sentence"])
    texts = list(frame["sentence"])
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
    def fingerprint(folder, **overrides):
        return rows_fingerprint(load_settings("demo", {"data_dir": str(folder), **overrides}), "sst2")

    before = fingerprint(glue)
    assert len(before) == 16 and int(before, 16) >= 0
    shutil.copytree(glue, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == before == fingerprint(glue, teacher_epochs=1)
    changes = [{"train_fraction": 0.5}, {"dev_rows": 9}, {"holdout_fraction": 0.2}, {"encoding": "latin-1"}]
    assert len({before, *(fingerprint(glue, **change) for change in changes)}) == 5
    write(glue / "SST-2", dev__tsv="sentence\tlabel\nanother\t1\n")
    assert fingerprint(glue) != before


def test_fingerprints_of_embedded_rows_the_hub_and_files(tmp_path):
    start = time.perf_counter()
    asked = [("demo", {}, "sst2"), ("demo", {}, "qqp"), ("demo", {"corpus_seed": 1}, "sst2"), ("paper", {}, "sst2")]
    prints = [rows_fingerprint(load_settings(profile, overrides), task) for profile, overrides, task in asked]
    assert time.perf_counter() - start < 0.5 and len(set(prints)) == 4
    own = own_file(tmp_path / "own.csv", [("a", "x"), ("b", "y")])
    changes = [{}, {"text_columns": "text,other"}, {"dev_file": own["task_file"]}, {"fold_labels": True}]
    assert len({rows_fingerprint(load_settings("demo", {**own, **change}), "own") for change in changes}) == 4
    with pytest.raises(SettingError, match="did you mean 'qqp'"):
        rows_fingerprint(load_settings("demo"), "qpp")
    with pytest.raises(DataError, match=r"absent\.csv cannot be read"):
        rows_fingerprint(load_settings("demo", {**own, "task_file": "absent.csv"}), "absent")


def test_statistics(glue):
    write(glue / "SST-2", dev__tsv="sentence\tlabel\none\t1\none two\t1\none two  three four \t0\n")
    table = splits.task_statistics(load(glue))
    assert table["train"]["labels"] == {"negative": 50, "positive": 150}
    # With three values the 90 % quantile lies 80 % of the way from the second to the third.
    assert table["dev"]["words"] == pytest.approx({"median": 2, "p90": 2 + 0.8 * 2, "p99": 2 + 0.98 * 2, "longest": 4})
    assert table["holdout"]["rows"] == 0 and table["holdout"]["words"]["median"] is None
    assert json.loads(json.dumps(table)) == table


def test_unused_and_transfer_texts(small_corpus):
    overrides = {"train_rows": 100, "holdout_fraction": 0.2}
    for task, columns in (("sst2", ["sentence"]), ("qqp", ["question1", "question2"])):
        plain = load_task_data(load_settings("demo", overrides), task, 3)
        whole = load_task_data(load_settings("demo", {"holdout_fraction": 0}), task, 3)
        known = {text for rows in (plain.train, plain.holdout) for column in columns for text in rows[column]}
        unused = unused_texts(load_settings("demo", overrides), task, 3)
        assert sorted(unused) == sorted({text for column in columns for text in whole.train[column]} - known)
    data = load_task_data(load_settings("demo", {**overrides, "transfer_rows": 50}), "qqp", 3, transfer=True)
    assert len(data.transfer) == 50 and set(data.transfer["label"]) == {-1}
    assert not set(data.transfer["row"]) & {*data.train["row"], *data.holdout["row"]}
    assert data.train["row"] == plain.train["row"] and len(plain.transfer) == 0
    assert "synthetic" in data.source and tuple(data.dev) == data.task.dev_splits
    assert "transfer: 50 texts without labels; 0 left out that labelled rows hold too" in data.notes
    with pytest.raises(MethodRefused, match="every train row of SST-2 is in use"):
        load_task_data(load_settings("demo", {"transfer_rows": 5}), "sst2", 0, transfer=True)


def test_transfer_texts_come_from_a_file_of_ones_own(tmp_path, small_corpus):
    file = tmp_path / "texts.csv"
    settings = load_settings("demo", {"transfer_file": str(file)})
    file.write_text('sentence\nfirst words\n""\n" "\n"dev sentence 3"\n"train sentence 3"\nlast words\n')
    data = load_task_data(settings, "sst2", 0, transfer=True)
    assert data.transfer["sentence"] == ["first words", "last words"] and data.transfer["label"] == [-1, -1]
    assert "transfer: 2 texts without labels; 2 left out that labelled rows hold too" in data.notes
    file.write_text("text\nfirst words\n")
    with pytest.raises(DataError, match="no column 'sentence'"):
        load_task_data(settings, "sst2", 0, transfer=True)
