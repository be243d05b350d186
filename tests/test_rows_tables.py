"""Tables in every shape that people bring, and the error of every way in which one can be wrong."""

import importlib.util
import sys

import pandas
import pytest

from edgemin_utils.errors import DataError, SettingError
from edgemin_utils.rows.tables import read_table

WANTED = {"text": ["one, two", "three"], "label": ["neg", "pos"]}


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", 'text,label\n"one, two",neg\nthree,pos\n'),
        ("blank_lines.csv", 'text,label\r\n\r\n"one, two",neg\r\n\r\n,\r\nthree,pos\r\n'),
        ("semicolons.csv", "text;label\none, two;neg\nthree;pos\n"),
        ("tabs.csv", "text\tlabel\none, two\tneg\nthree\tpos\n"),
        ("nameless.csv", 'text,label,,,\n"one, two",neg,,,\nthree,pos,,,\n'),
        ("trailing.csv", 'text,label\n"one, two",neg,\nthree,pos,\n'),
        ("index.csv", ',text,label\n0,"one, two",neg\n1,three,pos\n'),
        ("blank_in_header.csv", '\ufefftext , label\n"one, two",neg\nthree,pos\n'),
        ("glue.tsv", "text\tlabel\none, two\tneg\nthree\tpos\n"),
        ("commas.tsv", 'text,label\n"one, two",neg\nthree,pos\n'),
        ("array.json", '[{"text": "one, two", "label": "neg"},\n {"text": "three", "label": "pos"}]'),
        ("lines.jsonl", '{"text": "one, two", "label": "neg"}\n\n{"text": "three", "label": "pos"}\n'),
    ],
)
def test_shapes_of_text_tables(tmp_path, name, content):
    assert read_table([write(tmp_path / name, content)]).columns == WANTED


def test_parquet_and_shards(tmp_path):
    frame = pandas.DataFrame(WANTED)
    frame.to_parquet(tmp_path / "own.parquet", index=False)
    assert read_table([tmp_path / "own.parquet"]).columns == WANTED
    both = read_table([tmp_path / "own.parquet"] * 2)
    assert both.columns == {name: values * 2 for name, values in WANTED.items()} and len(both) == 4


def test_excel_files_need_openpyxl(tmp_path, monkeypatch):
    path = write(tmp_path / "own.xlsx", b"")
    if importlib.util.find_spec("openpyxl"):  # no part of the package's own needs
        with pandas.ExcelWriter(path) as book:
            pandas.DataFrame(WANTED).to_excel(book, sheet_name="first")  # with an index column
            pandas.DataFrame({"other": [1]}).to_excel(book, sheet_name="second")
        assert read_table([path]).columns == WANTED
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"other\.xlsx: Excel files need openpyxl .*or save the sheet as CSV"):
        read_table([path.rename(tmp_path / "other.xlsx")])


def test_csv_matches_pandas_and_names_lines(tmp_path):
    texts = ['say "hi", twice', "two\nlines", "NA", " blanks ", "ünï€", "a\tb", "x" * 140_000]
    frame = pandas.DataFrame({"text": texts, "label": list("xyxyxyx")})
    frame.to_csv(tmp_path / "own.csv", index=False)
    table = read_table([tmp_path / "own.csv"])
    assert table.columns == frame.to_dict("list")
    assert [table.place(index).split(", ")[1] for index in range(4)] == ["line 2", "line 3", "line 5", "line 6"]


def test_tsv_as_glue_writes_it(tmp_path):
    text = '\ufeffsentence\tlabel\r\n"an open quote\t1\r\none\u2028line\x0c\t0\r\nNA\t1\r\n\r\n'
    assert read_table([write(tmp_path / "a.tsv", text)]).columns == {
        "sentence": ['"an open quote', "one\u2028line\x0c", "NA"],
        "label": ["1", "0", "1"],
    }


def test_other_encodings_are_named_and_read(tmp_path):
    path = write(tmp_path / "latin.csv", "text,label\n£900 now,spam\nhome,ham\n", "latin-1")
    with pytest.raises(DataError, match=r"latin\.csv is not UTF-8: byte 0xa3 at offset 11; .* --set encoding=latin-1"):
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
        ("a.parquet", "PAR1 but not really", "is not a readable parquet file"),
        ("a.xlsx", "PK\x03\x04", "is not a readable Excel file .*save the sheet as CSV"),
        ("a.csv", "go\0od,1\n", "holds a NUL byte"),
        ("a.doc", "text", "save it as CSV, or as .csv, .tsv"),
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
