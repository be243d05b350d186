"""Where rows come from: every layout that is read, and the error of every way in which it can be wrong."""

import csv
import io
import json
import time
from pathlib import Path

import datasets
import huggingface_hub
import pandas
import pytest

from edgemin_utils import sources
from edgemin_utils.config import load_settings
from edgemin_utils.errors import DataError
from edgemin_utils.row_files import label_text, read_rows
from edgemin_utils.sources import find_split_files, read_file, read_folder, read_hub, read_source, source_identity
from edgemin_utils.tasks import Task, custom_task, find_task

SST2, MNLI, QQP = find_task("sst2"), find_task("mnli"), find_task("qqp")
SST2_TRAIN = "sentence\tlabel\na fine film \t1\ndull\t0\n"
MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\t"
)


def mnli_line(premise, hypothesis, label, annotators=("n/a",)):
    return "\t".join(["0", *["n/a"] * 7, premise, hypothesis, *annotators, label]) + "\n"


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def sst2_folder(tmp_path, train=SST2_TRAIN, dev="sentence\tlabel\nso so\t1\n"):
    write(tmp_path / "SST-2", train__tsv=train, dev__tsv=dev)
    return tmp_path


# ---- GLUE's TSV layout ---------------------------------------------------------------------------------------


def test_sst2_tsv(tmp_path):
    source = read_folder(SST2, sst2_folder(tmp_path))
    assert source.splits["train"].to_dict("list") == {
        "sentence": ["a fine film ", "dull"],
        "label": [1, 0],
        "row": [0, 1],
    }
    assert source.splits["dev"].to_dict("list") == {"sentence": ["so so"], "label": [1], "row": [0]}
    assert source.notes == ()
    assert str(tmp_path) not in source.description


def test_the_example_of_a_new_task_reads_its_rows(tmp_path):
    """The entry of CONTRIBUTING, as it stands there."""
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (task,) = eval("{" + page.split("```python\n")[1].split("```")[0] + "}", {"Task": Task}).values()
    header = "index\tsentence1\tsentence2\tlabel\n"
    write(
        tmp_path / "RTE",
        train__tsv=header + "0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
        dev__tsv=header + "0\te\tf\tentailment\n",
    )
    splits = read_folder(task, tmp_path).splits
    assert splits["train"][["sentence2", "label"]].values.tolist() == [["b", 0], ["d", 1]]
    assert splits["dev"]["sentence1"].tolist() == ["e"]


def test_mnli_tsv_reads_columns_by_name_and_says_what_is_missing(tmp_path):
    annotators = ("neutral", "entailment", "neutral", "neutral", "neutral")
    write(
        tmp_path / "mnli",
        train__tsv=MNLI_HEADER
        + "gold_label\n"
        + mnli_line("p", "h", "contradiction", ("neutral",))
        + mnli_line("p2", "h2", "entailment")
        + mnli_line("p3", "h3", "neutral"),
        dev_matched__tsv=MNLI_HEADER
        + "label2\tlabel3\tlabel4\tlabel5\tgold_label\n"
        + mnli_line("q", "i", "-", annotators)
        + mnli_line("q2", "i2", "entailment", annotators),
    )
    source = read_folder(MNLI, tmp_path)
    assert source.splits["train"].to_dict("list") == {
        "premise": ["p", "p2", "p3"],
        "hypothesis": ["h", "h2", "h3"],
        "label": [2, 0, 1],
        "row": [0, 1, 2],
    }
    # The row without an agreed label is left out; the one after it keeps its place in the file.
    assert source.splits["dev_matched"].to_dict("list") == {
        "premise": ["q2"],
        "hypothesis": ["i2"],
        "label": [0],
        "row": [1],
    }
    assert any("dev_mismatched: not in the folder" in note for note in source.notes)
    assert any("dev_matched: 1 row without an agreed label ('-') left out" == note for note in source.notes)


def test_qqp_tsv(tmp_path):
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    write(
        tmp_path / "qqp",
        train__tsv=header + "1\t2\t3\tWhy?\tHow?\t0\n2\t4\t5\tWho?\tWho is it?\t1\n",
        dev__tsv=header + "3\t6\t7\tWhen?\t\t1\n4\t6\t7\tWhen?\tAt what time?\t1\n",
    )
    source = read_folder(QQP, tmp_path)
    assert source.splits["train"]["label"].tolist() == [0, 1]
    assert source.splits["dev"]["question2"].tolist() == ["At what time?"]
    assert source.splits["dev"]["row"].tolist() == [1]
    assert source.notes == ("dev: 1 row with an empty text left out",)


def test_quotation_marks_in_tsv_are_text(tmp_path):
    train = 'sentence\tlabel\n"an open quote\t1\nnext row\t0\n"closed"\t1\nsay ""what""\t0\n'
    frame = read_folder(SST2, sst2_folder(tmp_path, train)).splits["train"]
    expected = pandas.read_csv(io.StringIO(train), sep="\t", quoting=csv.QUOTE_NONE)
    assert frame["sentence"].tolist() == expected["sentence"].tolist()
    assert frame["label"].tolist() == expected["label"].tolist() == [1, 0, 1, 0]


def test_missing_value_words_stay_text(tmp_path):
    frame = read_folder(SST2, sst2_folder(tmp_path, "sentence\tlabel\nNA\t1\nnull\t0\nnan\t1\n")).splits["train"]
    assert frame["sentence"].tolist() == ["NA", "null", "nan"]


def test_line_ends_byte_order_mark_and_line_separators(tmp_path):
    train = "\ufeffsentence\tlabel\r\none\u2028line\x0c\t1\r\ntwo\x85\t0\r\n\r\n"
    frame = read_folder(SST2, sst2_folder(tmp_path, train)).splits["train"]
    assert frame["sentence"].tolist() == ["one\u2028line\x0c", "two\x85"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("", r"train\.tsv is empty"),
        ("sentence\tlabel\n", "has a header but no rows"),
        ("sentence\tlabel\ngood\t1\nbad\n", "line 3: 1 fields where the header has 2"),
        ("sentence\tlabel\ngood\tvery\t1\nbad\t0\n", "line 2: 3 fields where the header has 2"),
        (
            "sentense\tlabel\ngood\t1\nbad\t0\n",
            "no column 'sentence'; the columns there are 'sentense', 'label'; did you mean 'sentense'",
        ),
        ("sentence,label\ngood,1\nbad,0\n", "no column 'sentence'"),
        ("sentence\tsentence\tlabel\na\tb\t1\n", "column 'sentence' stands more than once"),
        (
            "sentence\tlabel\ngood\t1\nbad\tnegativ\n",
            r"line 3: unknown label 'negativ' \(did you mean 'negative'\?\); "
            "known labels: negative, positive or 0 to 1",
        ),
        ("sentence\tlabel\ngood\t1\nbad\t-1\n", "line 3: unknown label '-1'"),
        ("sentence\tlabel\ngood\t1\nbad\t\n", "line 3: no label"),
        ("sentence\tlabel\n \t1\n\t0\n", "no usable row is left; train: 2 rows with an empty text left out"),
        (b"sentence\tlabel\ncaf\xe9\t1\nbad\t0\n", r"train\.tsv is not UTF-8: byte 0xe9 at offset 18"),
        ("sentence\tlabel\ngo\0od\t1\n", "NUL byte at offset 17"),
        (SST2_TRAIN.encode("utf-16"), "is not UTF-8: byte 0xff at offset 0"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, train, message):
    with pytest.raises(DataError, match=message) as caught:
        read_folder(SST2, sst2_folder(tmp_path, train))
    assert "train.tsv" in str(caught.value)


def test_labels_that_make_no_task(tmp_path):
    settings = load_settings("demo", {"data_dir": str(tmp_path)})
    sst2_folder(tmp_path, "sentence\tlabel\ngood\t1\nfine\t1\n", "sentence\tlabel\nfine\t1\n")
    with pytest.raises(DataError, match="all train rows have the label 'positive'"):
        read_source(settings, SST2)
    write(
        tmp_path / "MNLI",
        train__csv="premise,hypothesis,label\na,b,0\nc,d,1\n",
        dev_matched__csv="premise,hypothesis,label\ne,f,contradiction\n",
    )
    with pytest.raises(DataError, match="label 'contradiction' occurs in dev_matched but in no train row"):
        read_source(settings, MNLI)


# ---- folders -------------------------------------------------------------------------------------------------


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*absent; --data-dir takes"):
        read_folder(SST2, tmp_path / "absent")
    write(tmp_path / "MNLI", train__tsv=MNLI_HEADER + "gold_label\n" + mnli_line("p", "h", "neutral"))
    with pytest.raises(DataError, match="no folder for SST-2 in .*: looked for SST-2 or sst2, .*; there is MNLI"):
        read_folder(SST2, tmp_path)
    with pytest.raises(
        DataError,
        match=r"no dev_matched split of MNLI .* looked for dev_matched\.tsv or "
        r"validation_matched\.tsv .*there is train\.tsv",
    ):
        read_folder(MNLI, tmp_path)


def test_a_split_that_is_there_twice(tmp_path):
    write(sst2_folder(tmp_path) / "SST-2", train__csv="sentence,label\na,1\n")
    with pytest.raises(DataError, match=r"the train split more than once \(train\.csv, train\.tsv\); keep one"):
        find_split_files(SST2, tmp_path)


@pytest.mark.parametrize("folder", ["SST-2", "sst-2", "sst2", "SST2"])
def test_folder_names_in_any_case(tmp_path, folder):
    write(tmp_path / folder, train__tsv=SST2_TRAIN, validation__tsv=SST2_TRAIN)
    assert [path.name for path in find_split_files(SST2, tmp_path).values()] == ["train.tsv", "validation.tsv"]


@pytest.mark.parametrize("layout", ["csv", "jsonl", "json", "parquet", "save_to_disk"])
def test_named_column_layouts_give_the_same_rows(tmp_path, layout):
    frame = pandas.DataFrame(
        {
            "hypothesis": ['h, "quoted"', "zwölf", "two\nlines"],
            "idx": [7, 8, 9],
            "premise": ["p1", "NA", "p3"],
            "label": [1, 0, 2],
        }
    )
    folder = tmp_path / "mnli"
    folder.mkdir()
    names = {"train": "train", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
    for name in names.values():
        path = folder / f"{name}.{layout}"
        if layout == "csv":
            frame.to_csv(path, index=False)
        elif layout.startswith("json"):
            frame.to_json(path, orient="records", lines=True)
        elif layout == "parquet":
            frame.to_parquet(path, index=False)
    if layout == "save_to_disk":
        features = datasets.Features(
            {
                "hypothesis": datasets.Value("string"),
                "idx": datasets.Value("int32"),
                "premise": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["neutral", "contradiction", "entailment"]),
            }
        )
        # The saved data set counts its labels in another order than the task: they are matched by name.
        reordered = frame.assign(label=[0, 2, 1])
        table = datasets.Dataset.from_dict(reordered.to_dict("list"), features=features)
        datasets.DatasetDict({name: table for name in names.values()}).save_to_disk(folder)
    source = read_folder(MNLI, tmp_path)
    assert list(source.splits) == list(names)
    for split in names:
        assert source.splits[split].to_dict("list") == {
            "premise": frame["premise"].tolist(),
            "hypothesis": frame["hypothesis"].tolist(),
            "label": frame["label"].tolist(),
            "row": [0, 1, 2],
        }
    assert source.notes == ()


def test_a_damaged_saved_data_set(tmp_path):
    table = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "sst2")
    next((tmp_path / "sst2" / "train").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="is incomplete"):
        read_folder(SST2, tmp_path)
    with pytest.raises(DataError, match="is incomplete"):
        source_identity(load_settings("demo", {"data_dir": str(tmp_path)}), SST2)


# ---- one file ------------------------------------------------------------------------------------------------


def test_csv_with_quotes_commas_and_line_ends_matches_pandas(tmp_path):
    frame = pandas.DataFrame(
        {
            "text": ['say "hi", twice', "two\nlines", "NA", " blanks ", "ünï€", "a\tb"],
            "label": ["x", "y", "x", "y", "x", "y"],
        }
    )
    frame.to_csv(tmp_path / "own.csv", index=False)
    rows = read_rows(tmp_path / "own.csv")
    assert rows.columns == frame.to_dict("list")
    assert [rows.place(index) for index in range(4)] == ["line 2", "line 3", "line 5", "line 6"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\n"open,1\nb,0\n', "the row that begins on line 2 is not CSV"),
        ("a.csv", "text,label\na,b,1\n", "line 2: 3 fields where the header has 2"),
        ("a.csv", "text;label\nfoo;1\n", "seem to be separated by something else"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: not a JSON object on one line"),
        ("a.jsonl", '["text", "label"]\n', "line 1: a JSON list, where an object"),
        ("a.jsonl", '{"text": "\\ud83d", "label": 1}\n', "line 1: not a JSON object on one line"),
        ("a.jsonl", "\n", "is empty"),
        ("a.parquet", "PAR1 but not really", "is not a readable parquet file"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name).find_column(("text",))


def own_task(path, **overrides):
    return custom_task(load_settings("demo", {"task_file": str(path), "text_columns": "text", **overrides}))


def test_own_file_with_a_dev_file(tmp_path):
    train, dev = tmp_path / "moods.jsonl", tmp_path / "more.csv"
    train.write_text(
        "".join(
            json.dumps({"text": text, "label": label}) + "\n"
            for text, label in [("a", 3), ("b", 1.0), ("c", 10), (None, 1)]
        ),
        "utf-8",
    )
    dev.write_text("text,label\nd,10\ne,3\n", "utf-8")
    source = read_file(own_task(train), train, dev)
    assert source.splits["train"]["label"].tolist() == [1, 0, 2]  # of the labels 1, 3, 10
    assert source.splits["dev"]["label"].tolist() == [2, 1]
    assert source.notes == ("train: 1 row with an empty text left out",)
    assert "moods.jsonl and more.csv" in source.description


def test_own_labels_are_names_even_when_they_look_like_ids(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("text,label\na,1\nb,2\n", "utf-8")
    assert read_file(own_task(path), path).splits["train"]["label"].tolist() == [0, 1]


def test_a_label_that_only_dev_has(tmp_path):
    train, dev = tmp_path / "own.csv", tmp_path / "dev.csv"
    train.write_text("text,label\na,yes\nb,no\n", "utf-8")
    dev.write_text("text,label\na,yes\nb,perhaps\n", "utf-8")
    with pytest.raises(DataError, match=r"dev\.csv, line 3: label 'perhaps' occurs in no train row; .*: no, yes"):
        read_file(own_task(train), train, dev)


def test_text_that_is_not_text(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": ["b"], "label": "y"}\n', "utf-8")
    with pytest.raises(DataError, match="line 2: column 'text' holds a list, where text is needed"):
        read_file(own_task(path), path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (1.5, "1.5"), (" yes ", "yes"), (None, ""), (float("nan"), ""), (True, "True")],
)
def test_label_text(value, text):
    assert label_text(value) == text


# ---- hub -----------------------------------------------------------------------------------------------------


def test_hub_labels_are_matched_by_name(monkeypatch):
    asked = []

    def load_dataset(name, config, revision, split):
        asked.append((name, config, revision, split))
        features = datasets.Features(
            {
                "premise": datasets.Value("string"),
                "hypothesis": datasets.Value("string"),
                "idx": datasets.Value("int32"),
                "label": datasets.ClassLabel(names=["contradiction", "entailment", "neutral"]),
            }
        )
        return datasets.Dataset.from_dict(
            {"premise": ["a", "b", "c"], "hypothesis": ["d", "e", "f"], "idx": [5, 6, 7], "label": [0, 1, 2]},
            features=features,
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "reach_hub", lambda repository, kind: True)
    source = read_hub(MNLI)
    assert list(source.splits) == ["train", "dev_matched", "dev_mismatched"]
    assert source.splits["train"]["label"].tolist() == [2, 0, 1]
    assert asked == [
        ("nyu-mll/glue", "mnli", sources.GLUE_REVISION, split)
        for split in ("train", "validation_matched", "validation_mismatched")
    ]


def no_route(*_, **__):
    raise ConnectionError("no route to the hub")


def cached_sst2(cache, revision):
    """The files that `datasets` leaves in its cache after it has loaded nyu-mll/glue, sst2."""
    folder = cache / "nyu-mll___glue" / "sst2" / "0.0.0" / revision
    folder.mkdir(parents=True)
    features = datasets.Features(
        {
            "sentence": datasets.Value("string"),
            "idx": datasets.Value("int32"),
            "label": datasets.ClassLabel(names=["negative", "positive"]),
        }
    )
    splits = {}
    for name, rows in (("train", 6), ("validation", 4)):
        writer = datasets.arrow_writer.ArrowWriter(path=str(folder / f"glue-{name}.arrow"), features=features)
        for index in range(rows):
            writer.write({"sentence": f"{name} {index}", "label": index % 2, "idx": index})
        writer.finalize()
        splits[name] = {"name": name, "num_bytes": 1, "num_examples": rows, "dataset_name": "glue"}
    datasets.DatasetInfo(
        features=features,
        builder_name="parquet",
        dataset_name="glue",
        config_name="sst2",
        version="0.0.0",
        splits=datasets.SplitDict.from_split_dict(splits),
    ).write_to_directory(str(folder))


def test_without_a_hub_the_error_comes_at_once_and_names_the_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_route)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    offline = datasets.config.HF_HUB_OFFLINE
    start = time.perf_counter()
    with pytest.raises(
        DataError,
        match=r"nyu-mll/glue \(sst2\) is not in the cache and the hub cannot be reached.*"
        "--data-dir.*demo profile",
    ):
        read_hub(SST2)
    assert time.perf_counter() - start < 10
    assert datasets.config.HF_HUB_OFFLINE == offline


def test_without_a_hub_the_cache_is_used_if_it_holds_the_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_route)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    cached_sst2(tmp_path, sources.GLUE_REVISION)
    source = read_hub(SST2)
    assert source.splits["dev"]["sentence"].tolist() == [f"validation {index}" for index in range(4)]
    assert source.splits["train"]["label"].tolist() == [0, 1] * 3


def test_another_cached_revision_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", no_route)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    cached_sst2(tmp_path, "0" * 40)
    with pytest.raises(DataError, match="the cache holds another revision"):
        read_hub(SST2)


def test_embedded_rows_are_called_synthetic():
    source = read_source(load_settings("demo"), SST2)
    assert "synthetic" in source.description
    assert set(source.splits) == {"train", "dev"}
    assert source.splits["dev"]["row"].tolist() == list(range(len(source.splits["dev"])))


def test_the_identity_of_a_saved_data_set_is_its_rows_and_label_names(tmp_path):
    def save(folder, names):
        features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        table = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [0, 1]}, features=features)
        datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / folder / "sst2")
        return source_identity(load_settings("demo", {"data_dir": str(tmp_path / folder)}), SST2)

    first = save("first", ["negative", "positive"])
    assert save("second", ["negative", "positive"]) == first
    assert save("third", ["positive", "negative"]) != first
