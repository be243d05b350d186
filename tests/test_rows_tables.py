"""Tables and labels in every shape that people bring, the tasks made of them, and what is said where they are wrong."""

import importlib.util
import sys

import pandas
import pytest

from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.rows.splits import load_task_data
from edgemin_utils.rows.tables import NO_LABEL, Table, find_classes, label_ids, label_texts, read_table, spelling_notes
from edgemin_utils.rows.tasks import TASKS, own_task_name, resolve_task, rows_fingerprint
from edgemin_utils.settings import load_settings

WANTED = {"text": ["one, two", "three"], "label": ["neg", "pos"]}


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("blank_lines.csv", 'text,label\r\n\r\n"one, two",neg\r\n\r\n,\r\nthree,pos\r\n'),
        ("semicolons.csv", "text;label\none, two;neg\nthree;pos\n"),
        ("tabs.csv", "text\tlabel\none, two\tneg\nthree\tpos\n"),
        ("nameless.csv", 'text,label,,,\n"one, two",neg,,,\nthree,pos,,,\n'),
        ("trailing.csv", 'text,label\n"one, two",neg,\nthree,pos,\n'),
        ("index.csv", ',text,label\n0,"one, two",neg\n1,three,pos\n'),
        ("blank_in_header.csv", '\ufefftext , label\n"one, two",neg\nthree,pos\n'),
        ("commas.tsv", 'text,label\n"one, two",neg\nthree,pos\n'),
        ("array.json", '[{"text": "one, two", "label": "neg"},\n {"text": "three", "label": "pos"}]'),
        ("lines.jsonl", '{"text": "one, two", "label": "neg"}\n\n{"text": "three", "label": "pos"}\n'),
    ],
)
def test_shapes_of_text_tables(tmp_path, name, content):
    assert read_table([write(tmp_path / name, content)]).columns == WANTED


def test_excel_files_need_openpyxl(tmp_path, monkeypatch):
    path = tmp_path / "own.xlsx"
    if importlib.util.find_spec("openpyxl"):  # no part of the package's own needs
        with pandas.ExcelWriter(path) as book:
            pandas.DataFrame(WANTED).to_excel(book, sheet_name="first")  # with an index column
            pandas.DataFrame({"other": [1]}).to_excel(book, sheet_name="second")
        assert read_table([path]).columns == WANTED
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"other\.xlsx cannot be read .*openpyxl.*; save it anew, or as CSV"):
        read_table([write(tmp_path / "other.xlsx", b"")])


def test_csv_matches_pandas_and_names_lines(tmp_path):
    texts = ['say "hi", twice', "two\nlines", "NA", " blanks ", "ünï€", "a\tb", "x" * 140_000]
    frame = pandas.DataFrame({"text": texts, "label": list("xyxyxyx")})
    frame.to_csv(tmp_path / "own.csv", index=False)
    table = read_table([tmp_path / "own.csv"])
    assert table.columns == frame.to_dict("list")
    assert [table.place(index).split(", ")[1] for index in range(4)] == ["line 2", "line 3", "line 5", "line 6"]


def test_tsv_as_glue_writes_it(tmp_path):
    text = '\ufeffsentence\tlabel\r\n"an open quote\t1\r\none\u2028line\x0c\t0\r\nNA\t1\r\n\r\n'
    columns = read_table([write(tmp_path / "a.tsv", text)]).columns
    assert columns == {"sentence": ['"an open quote', "one\u2028line\x0c", "NA"], "label": ["1", "0", "1"]}


def test_other_encodings_are_named_and_read(tmp_path):
    path = write(tmp_path / "latin.csv", "text,label\n£900 now,spam\nhome,ham\n", "latin-1")
    with pytest.raises(DataError, match=r"latin\.csv is not UTF-8: byte 0xa3 at offset 11; .* --set encoding=cp1252"):
        read_table([path])
    assert read_table([path], "latin-1").columns["text"][0] == "£900 now"
    with pytest.raises(SettingError, match="encoding is 'latin-9000'"):
        read_table([path], "latin-9000")
    wide = write(tmp_path / "wide.csv", "text,label\na,b\n", "utf-16")
    with pytest.raises(DataError, match="--set encoding=utf-16"):
        read_table([wide])
    assert read_table([wide], "utf-16").columns == {"text": ["a"], "label": ["b"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text,label\n"open,1\nb,0\n', r"the row that begins on line 2 is not CSV .*close the quotation"),
        ("a.csv", "text,label\n\na,b,1\n", r"a\.csv, line 3: 3 fields where the header has 2; .*quotation marks"),
        ("a.tsv", "text\tlabel\ngood\t1\nbad\n", "line 3: 1 fields where the header has 2"),
        ("a.csv", "text,label\n", "has a header but no rows"),
        ("a.csv", "\n", "is empty"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", '["text", "label"]\n', "row 0: a JSON str, where an object"),
        ("a.json", '[{"text": "a"}', r"a\.json: not JSON .*line 1 column 15"),
        ("a.parquet", "PAR1 but not really", r"a\.parquet cannot be read .*save it anew, or as CSV"),
        ("a.csv", "go\0od,1\n", "holds a NUL byte"),
        ("a.doc", "text", "ending so; save it as one of .csv, .tsv"),
        ("a.csv", "sentense,label\na,1\n", "no column 'sentence'; .*'sentense', 'label'; did you mean 'sentense'"),
        ("a.csv", "sentence,sentence,label\na,b,1\n", r"no column 'sentence'; .* 'sentence \(1\)', 'sentence \(2\)'"),
        ("a.csv", '"1","Topic","it rose"\n"2","Other","it fell"\n', "looks like data.*as column1,column2,column3"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_table([write(tmp_path / name, content)]).find("sentence")


def test_text_beyond_the_named_columns_is_left_out_and_an_edited_file_read_again(tmp_path):
    path = write(tmp_path / "own.csv", "text,label,\na,x,more\nb,y,\n")
    assert read_table([path]).columns == {"text": ["a", "b"], "label": ["x", "y"]}
    write(path, "text,label\nc,x\nlonger,y\n")
    assert read_table([path]).columns["text"] == ["c", "longer"]
    for path, message in ((tmp_path / "absent.csv", r"no file .*absent\.csv"), (tmp_path, "is not a file")):
        with pytest.raises(DataError, match=message):
            read_table([path])


def texts(*values, fold=False):
    return label_texts(Table("own.csv", {"label": list(values)}), "label", fold)


def own(path, **overrides):
    return load_settings("laptop", {"task_file": str(path), "text_columns": "text", **overrides})


def write_rows(path, labels):
    rows = {"text": [f"number {index} of a film" for index in range(len(labels))], "label": labels}
    pandas.DataFrame(rows).to_csv(path, index=False)
    return path


def load(path, seed=0, **overrides):
    return load_task_data(own(path, **overrides), "own", seed)


def test_equal_numbers_are_one_label():
    assert texts(1, 1.0, "1", " 1.00 ", "+1", 1.5, "1.50", "007", None, float("nan"), " yes ", "-0.0", True) == [
        *["1"] * 5, "1.5", "1.5", "007", "", "nan", "yes", "0", "True"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["good", "bad"], ("bad", "good")),
        (["10", "9", "few"], ("10", "9", "few")),
        (["0", "1", "2", "-1", "nan", "NULL", "None", "N/A", "-", ""], ("0", "1", "2")),
        (["1", "-1"], ("-1", "1")),  # two classes, as sentiment is often written
        (["yes", "no", "-"], ("no", "yes")),
    ],
)
def test_classes_and_their_order(values, classes):
    assert find_classes(texts(*values), "own.csv") == classes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "a", "-1"], "own.csv holds only the label 'a', and 1 rows without one; a task needs at least two"),
        ([None, ""], "only the label '', and 2 rows without one"),
        ([index / 7 for index in range(50)], "50 values in 50 rows, too many; is it the label column"),
    ],
)
def test_columns_that_are_no_classes(values, message):
    with pytest.raises(DataError, match=message):
        find_classes(texts(*values), "own.csv")


@pytest.mark.parametrize("value", [["billing", "login"], ["refund"], "['billing', 'login']", '["a"]', {"a": 1}])
def test_several_labels_a_row_are_refused(value):
    with pytest.raises(DataError, match="own.csv, row 1: 'label' is .*; a row must have one label, not several"):
        texts("refund", value)
    assert texts("[OTHER]") == ["[OTHER]"]


def test_ids_of_names_numbers_and_markers():
    # In the order of the dataset card of nyu-mll/glue.
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert TASKS["qqp"].labels == ("not_duplicate", "duplicate")
    table = Table("own.csv", {})
    assert label_ids(table, ["negative", "1", "-1", ""], TASKS["sst2"].labels, True) == [0, 1, NO_LABEL, NO_LABEL]
    assert label_ids(table, ["1", "2", "-1"], ("1", "2"), False) == [0, 1, NO_LABEL]
    assert label_ids(table, ["1", "-1"], ("-1", "1"), False) == [1, 0]


def test_spellings_are_named_and_folded(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["Pos", "neg", " pos ", "POS", "neg"] * 6)
    data = load(path)
    assert data.task.labels == ("POS", "Pos", "neg", "pos")
    said = "taken apart; --set fold_labels=true joins them: 'POS' (6 rows), 'Pos' (6 rows), 'pos' (6 rows)"
    assert f"train: labels that differ only in case or blanks are {said}" in data.notes
    folded = load(path, fold_labels="true")
    assert folded.task.labels == ("neg", "pos") and not any("differ" in note for note in folded.notes)
    assert folded.fingerprint != data.fingerprint
    assert spelling_notes(["b", "a", "b", "None", "#N/A"], "train") == ["train: labels 'a' (1 rows), 'b' (2 rows)"]
    assert spelling_notes(list("abcdefghijk"), "dev")[0].endswith("'i' (1 rows), ...")


def test_rows_without_a_label_or_text_are_left_out_and_counted(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["0", "1", "2"] * 10 + ["-1", ""])
    path.write_text(path.read_text().replace("number 3 of a film", " "))
    data = load(path)
    assert data.task.labels == ("0", "1", "2")
    left_out = "without a label ('', '-1'; a class called so needs another name) left out"
    assert f"train: 2 of 32 rows {left_out}" in data.notes
    assert "train: 1 of 32 rows with an empty text left out" in data.notes
    path.write_text("text,label\n,a\n ,b\n")
    with pytest.raises(DataError, match="no usable row is left; train: 2 of 2 rows with an empty text left out"):
        load(path)


def test_numbers_in_train_and_decimals_in_dev(tmp_path):
    train, dev = write_rows(tmp_path / "own.csv", [0, 1] * 10), write_rows(tmp_path / "dev.csv", [0.0, 1.0])
    data = load(train, dev_file=str(dev))
    assert data.task.labels == ("0", "1") and data.dev["dev"]["label"] == [0, 1]
    write_rows(dev, [0, 2])
    with pytest.raises(DataError, match=r"dev\.csv, line 3: unknown label '2'; known: 0, 1 in train"):
        load(train, dev_file=str(dev))


def test_an_own_file_gives_up_the_same_dev_rows_for_every_seed_and_is_used_whole(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["a", "b"] * 25)
    first, other = (load(path, seed) for seed in (0, 1))
    assert first.dev["dev"]["row"] == other.dev["dev"]["row"] and sorted(first.dev["dev"]["label"]) == [0] * 5 + [1] * 5
    assert len(first.train) + len(first.holdout) == 40
    assert "dev: 10 of 50 rows, since no dev file was given" in first.notes
    with pytest.raises(DataError, match="every label has a single row, so none can be dev"):
        load(write_rows(path, ["a", "b"]))


def test_repeated_and_contradictory_texts_and_missing_labels_are_said(tmp_path):
    path, dev = write_rows(tmp_path / "own.csv", ["a", "b"] * 20 + ["c"]), write_rows(tmp_path / "dev.csv", ["b"] * 3)
    dev.write_text(dev.read_text().replace("number 2", "another"))
    data = load(path, dev_file=str(dev))
    assert "dev: 2 of 3 rows have the text of a train row, which flatters" in data.notes
    assert {"holdout: no row with label 'c'", "dev: no row with label 'a', 'c'"} <= set(data.notes)
    assert not any("different labels" in note for note in data.notes)
    path.write_text(path.read_text().replace("number 1 ", "number 0 ").replace("number 3 ", "number 0 "))
    notes = load(path, dev_file=str(dev)).notes
    assert any("train: different labels stand at the same text (1 times)" in note for note in notes), notes


def test_names_of_tasks_survive_any_script():
    names = ["отзывы.csv", "评论.csv", "कि.csv", "की.csv", "★.csv", "♥.csv", "my reviews (v2).csv", "a/../x.csv"]
    made = [own_task_name(name) for name in names]
    assert len(set(made)) == len(names) and made[0] == "отзывы" and made[-2:] == ["my-reviews-v2", "x"]
    assert all(name.replace("-", "").replace("_", "") and not set(name) & set(' /\\.:*?"<>|') for name in made)
    assert len(own_task_name("长" * 300 + ".csv").encode()) < 200


def test_fingerprints_follow_settings_and_what_is_in_a_file_of_that_name(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["x", "y"])
    changes = [{}, {"text_columns": "text,other"}, {"dev_file": str(path)}, {"fold_labels": True}]
    prints = {rows_fingerprint(own(path, **change), "own") for change in changes}
    assert len(prints | {rows_fingerprint(own(write_rows(path, ["x", "z"])), "own")}) == 5
    with pytest.raises(DataError, match=r"absent\.csv cannot be read"):
        rows_fingerprint(own("absent.csv"), "absent")


def test_settings_that_make_no_task(tmp_path):
    path = write_rows(tmp_path / "own.csv", ["a", "b"])
    with pytest.raises(SettingError, match="must be different columns"):
        resolve_task(own(path, text_columns="text,text"), "own")
    with pytest.raises(SettingError, match="must be different columns"):
        resolve_task(own(path, label_column="text"), "own")
    with pytest.raises(SettingError, match="cannot be called 'label' or 'row'"):
        resolve_task(own(path, text_columns="row"), "own")
    with pytest.raises(SettingError, match=r"unknown task 'sst2'; the task that .*csv makes is called 'own'"):
        resolve_task(own(path), "sst2")
