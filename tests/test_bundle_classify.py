"""The program in a bundle: every line gets its answer whatever it is given, on any terminal, with three packages."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from example_bundle import MAX_LENGTH, write_bundle
from small_models import edit_json

from edgemin_utils.bundle import classify
from edgemin_utils.bundle.classify import Bundle, ClassifyError, answer_lines, classify_stream, predict_texts
from edgemin_utils.rows.tokens import load_tokenizer

ODD_TEXTS = ["", " ", "good " * 20_000, "the film\x00 was good", "good \U0001f600 film", "\u202egood", "e\u0301 \u00e9"]
ODD_TEXTS += ["a\u2028b", "[CLS] [SEP] [PAD]", '"quoted, and ""doubled"""', "x" * 5000, "\u05e1\u05e8\u05d8"]
TEXTS = [f"the film was {word} and {other}" for word in ("good", "bad", "warm", "dull") for other in ("grim", "bright")]
DAMAGES = [
    (lambda at: flip(at / "model.onnx"), "model.onnx is damaged"),
    (lambda at: (at / "tokenizer.json").unlink(), "tokenizer.json cannot be read (No such file"),
    (lambda at: (at / "bundle.json").unlink(), "holds no bundle.json, so it is no bundle"),
    (lambda at: (at / "bundle.json").write_text('{"format_version": 2'), "bundle.json is damaged"),
    (lambda at: (at / "bundle.json").write_text("[]"), "format None"),
    (lambda at: edit_json(at / "bundle.json", format_version=1), "is a bundle of format 1, and this program reads 2"),
    (lambda at: edit_json(at / "bundle.json", labels=None), "lacks labels"),
    (lambda at: edit_json(at / "bundle.json", files={}), "does not list model.onnx"),
]
# Runs the bundle's program where nothing of this project nor torch can be imported, and then says its peak memory.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys("torch transformers edgemin_utils onnx datasets pandas scipy".split())
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*(line for line in open("/proc/self/status") if line.startswith("VmHWM")), end="", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "single", "sentence")


@pytest.fixture(scope="module")
def pair(single) -> Path:
    return write_bundle(single.parent / "pair", "sentence", "other")


@pytest.fixture
def copy(single, tmp_path) -> Path:
    """A bundle of a test's own to damage."""
    return Path(shutil.copytree(single, tmp_path / "copy"))


def answers(bundle, content, as_csv=False, columns=None, batch_size=1):
    """The lines that the program writes for these bytes, and its error ("" for none)."""
    target, error = io.StringIO(), ""
    try:
        classify_stream(bundle, io.BytesIO(content), target, as_csv, columns or bundle.text_columns, batch_size)
    except ClassifyError as raised:
        error = str(raised)
    return target.getvalue().splitlines(), error


def test_odd_texts_are_answered_as_the_models_own_tokenizer_would(single):
    bundle, tokenizer = Bundle(single), load_tokenizer(str(single.parent / "model"))
    for text in ODD_TEXTS:
        wanted = tokenizer(text, truncation="longest_first", max_length=MAX_LENGTH)["input_ids"]
        assert bundle.tokenizer.encode(text).ids == wanted, text[:20]
    lines, error = answers(bundle, "\n".join(ODD_TEXTS).encode())
    assert error == "" and len(lines) == len(ODD_TEXTS)
    assert lines == [answers(bundle, text.encode() + b"\n")[0][0] for text in ODD_TEXTS]


def test_order_is_kept_whatever_the_batches(single):
    bundle, texts = Bundle(single), [*TEXTS, *ODD_TEXTS]
    content = "\n".join(texts).encode()
    first, many = answers(bundle, content)[0], answers(bundle, content, batch_size=7)[0]
    apart = [abs(float(a.split("\t")[1]) - float(b.split("\t")[1])) for a, b in zip(first, many, strict=True)]
    assert len(first) == len(texts) and max(apart) < 0.1 and len(set(first)) > 10


def test_a_line_that_cannot_be_read_ends_the_rows_after_those_before_it(single):
    lines, error = answers(Bundle(single), b"good\nbad\na \xff\xfe film\ngood\n")
    assert len(lines) == 2 and "line 3 is not UTF-8 (byte 3 is 0xff); convert the input, as with iconv" in error
    lines, error = answers(Bundle(single), b"good\n" + b"a" * 1_200_000)
    assert len(lines) == 1 and "line 2 is longer than 1,048,576 bytes" in error


def test_lines_may_end_as_on_windows_or_not_at_all(single, pair):
    bundle = Bundle(single)
    wanted, _ = answers(bundle, b"good film\nbad film\n")
    assert answers(bundle, b"\xef\xbb\xbfgood film\r\nbad film")[0] == wanted and answers(bundle, b"") == ([], "")
    lines, error = answers(Bundle(pair), b"good\tbad\none alone\n")
    assert len(lines) == 1 and error == "line 2 has 1 columns, not 2: sentence TAB other"


def test_csv_columns_are_found_by_name(pair):
    bundle, target = Bundle(pair), io.StringIO()
    rows = [("good, they\nsay", "bad " * 30_000), ("the film", 'was "good"')]
    csv.writer(target).writerows([("id", "b", " a"), *((1, second, first) for first, second in rows), ()])
    content = target.getvalue().encode()
    lines, error = answers(bundle, content, as_csv=True, columns=["a", "b"])
    assert error == "" and lines == answer_lines(bundle, rows).splitlines()
    assert "no column 'sentence', only id, b, a; name" in answers(bundle, content, as_csv=True)[1]
    short = answers(bundle, b"sentence,other\ngood,bad\ngood\n", as_csv=True)
    assert len(short[0]) == 1 and short[1] == "line 3 has 1 columns, the header 2"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_bundle_that_cannot_be_used_says_why(copy, damage, message, capsys):
    damage(copy)
    assert classify.main(["--bundle", str(copy), os.devnull]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("classify: ") and message in shown.err
    assert shown.err.count("\n") == 1
    with pytest.raises(ClassifyError) as raised:
        predict_texts(copy, ["good"])
    assert message in str(raised.value)


def test_integers_are_added_exactly_where_they_could_overflow(monkeypatch, tmp_path):
    cases = [("x86_64", "avx2 avx512_vnni", "0"), ("AMD64", "avx_vnni", "0"), ("x86_64", "avx2", "1")]
    for machine, flags, exact in [*cases, ("AMD64", "", "1"), ("aarch64", "asimd", "0")]:
        monkeypatch.setattr(classify.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(classify, "CPU_FILE", tmp_path / (flags or "absent"))
        if flags:
            classify.CPU_FILE.write_text(f"processor : 0\nflags : fpu {flags}\n")
        assert classify.session_options(1).get_session_config_entry("session.x64quantprecision") == exact, flags


def test_check_sees_every_file_and_another_answer(copy, capsys):
    assert classify.main(["--bundle", str(copy), "--check"]) == 0
    assert "5 files" in capsys.readouterr().out
    edit_json(copy / "bundle.json", check={"texts": [["good"]], "probabilities": [[2.0, -1.0]]})
    assert classify.main(["--bundle", str(copy), "--check"]) == 2
    assert "computes its integers otherwise" in capsys.readouterr().err
    flip(copy / "README.txt")
    assert classify.main(["--bundle", str(copy), "--check"]) == 2
    assert "README.txt is damaged" in capsys.readouterr().err


def test_predict_takes_the_texts_of_a_pair_in_turns(pair):
    header, *lines = predict_texts(pair, ["good", "bad", "film", "story"]).splitlines()
    assert header == "label\tnegative\tpositive"
    assert lines == answers(Bundle(pair), b"good\tbad\nfilm\tstory\n")[0]
    with pytest.raises(ClassifyError, match=r"has 2 texts \(sentence, other\), and 1 were given"):
        predict_texts(pair, ["good"])
    with pytest.raises(ClassifyError, match="is not UTF-8"):
        predict_texts(pair, ["good", "\udcff"])  # the byte FF, as a shell hands it over


def alone(folder, *arguments, content=b"", **environment):
    """The bundle's program in a process of its own: what it wrote, what it said, its peak memory in bytes."""
    command = [sys.executable, *["-I"] * (not environment), "-c", ALONE, str(folder / "classify.py"), *arguments]
    done = subprocess.run(command, input=content, capture_output=True, env={**os.environ, **environment})
    *said, peak = done.stderr.decode().splitlines()
    return done, "\n".join(said), int(peak.split()[1]) * 1024


def test_the_program_needs_only_its_three_packages_and_constant_memory(single):
    few, said, small = alone(single, "--batch-size", "64", content=b"a good film\nbad\n" * 200)
    assert few.returncode == 0 and said == "" and len(few.stdout.splitlines()) == 401
    many, _, large = alone(single, "--batch-size", "64", content=b"a good film\nbad\n" * 20_000)
    assert len(many.stdout.splitlines()) == 40_001 and large - small < 40e6
    damaged, said, _ = alone(single, content=b"good\n\xff\n")
    assert damaged.returncode == 2 and len(damaged.stdout.splitlines()) == 2 and "Traceback" not in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_output_survives_any_terminal(copy, encoding):
    edit_json(copy / "bundle.json", labels=["плохо", "good"], task="отзывы")
    done, said, _ = alone(copy, content="хорошо\n".encode(), PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and said == ""
    assert done.stdout.split()[1] == "плохо".encode(encoding, errors="backslashreplace")
    assert alone(copy, "--check", PYTHONIOENCODING=encoding)[0].returncode == 0
    missing, said, _ = alone(copy, "отзывы.txt", PYTHONIOENCODING=encoding)
    assert missing.returncode == 2 and "Traceback" not in said and "No such file" in said


def test_an_answer_comes_as_soon_as_its_row(single):
    command = [sys.executable, "-I", str(single / "classify.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"label\tnegative\tpositive\n"
        for text in ("a good film", "bad"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().count(b"\t") == 2
    assert process.returncode == 0
