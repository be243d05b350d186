"""The page treats characters of every script as the tokenizers library does. Collected where node and npm are."""

import json
import shutil
import subprocess

import pytest
import tokenizers
from conftest import PROJECT
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from edgemin_utils.browser.demo import CACHE, FOLDER, fetch_packages
from edgemin_utils.rows.tokens import train_tokenizer

__test__ = bool(shutil.which("node") and shutil.which("npm"))

# All that is assigned, and what lies between; the rest is private or empty, and is looked at here and there.
CODES = [*range(1, 0xD800), *range(0xE000, 0x34000), *range(0x34000, 0x110000, 257), *range(0xE0000, 0xE0200)]
# A step of a tokenizer of @huggingface/tokenizers is an object whose methods the page replaces.
CHARACTERS = """
import { readFileSync } from "fs";
import { makeTokenizer } from "./characters.mjs";
class Plain { normalizer = {}; pre_tokenizer = {}; }
const { rules, texts } = JSON.parse(readFileSync(0));
const { normalizer, pre_tokenizer: words } = makeTokenizer(Plain, rules);
const cut = words.pre_tokenize_text ?? ((text) => text.match(words.pattern) ?? []);
console.log(JSON.stringify(texts.map((text) => normalizer.normalize?.(text) ?? cut(text))));
"""
ENCODER = """
import { readFileSync } from "fs";
import { makeEncoder } from "./classifier.mjs";
const { rules, length, rows, library } = JSON.parse(readFileSync(0));
const { Tokenizer } = await import(library);
console.log(JSON.stringify(rows.map(makeEncoder(Tokenizer, rules, length))));
"""
ODD_TEXTS = ["", " ", "Ünïcödé CAFÉ", "日本語と中文 \U00020001", "مرحبا بالعالم", "ΟΔΟΣ ΣΟΦΟΣ. ΣΑΣ", "1,234.56 %?!"]
ODD_TEXTS += ["İstanbul IŞIK ẞ ǅ", "\U0001f600 \U0001f469\u200d\U0001f467 ok", "don't  stop\t\n now\u0085x\ufeffy"]
ODD_TEXTS += ["x" * 150, "a\u0000b\ufffd", "[MASK] [SEP] x", "e\u0301 \u200b zero\u00adwidth \u302e\u0334"]


def in_node(script: str, given: dict) -> list:
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), cwd=FOLDER / "page", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("off", ["", "lowercase", "strip_accents", "clean_text handle_chinese_chars"])
def test_every_character_is_normalized_as_in_the_library(off):
    normalizer, codes = normalizers.BertNormalizer(**dict.fromkeys(off.split(), False)), CODES[:: 7 if off else 1]
    texts = [f"x{chr(code)}Y" for code in codes]
    found = in_node(CHARACTERS, {"rules": {"normalizer": json.loads(normalizer.__getstate__())}, "texts": texts})
    wanted = [normalizer.normalize_str(text) for text in texts]
    assert [hex(code) for code, a, b in zip(codes, found, wanted, strict=True) if a != b] == []


def blocks() -> list[str]:
    """A text for every 64 code points: their characters in words of five, so that each stands at a word's end too."""
    chunks = [CODES[start : start + 64] for start in range(0, 0x34000 - 0x1000, 64)]
    return [" ".join("".join(map(chr, chunk[at : at + 5])) for at in range(0, 64, 5)) for chunk in chunks]


@pytest.mark.parametrize("kind", ["BertPreTokenizer", "ByteLevel"])
def test_every_script_is_cut_into_the_same_words(kind):
    made = getattr(pre_tokenizers, kind)(**({"add_prefix_space": False} if kind == "ByteLevel" else {}))
    texts = [*blocks(), *ODD_TEXTS]
    found = in_node(CHARACTERS, {"rules": {"pre_tokenizer": json.loads(made.__getstate__())}, "texts": texts})
    for text, own in zip(texts, found, strict=True):
        assert own == [text[start:end] for _, (start, end) in made.pre_tokenize_str(text)]


def word_piece(texts: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer in BERT's manner whose vocabulary holds characters of every script in the texts."""
    return train_tokenizer(texts, 30_000).backend_tokenizer


def byte_level(texts: list[str]) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer in RoBERTa's manner."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "show_progress": False, "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=600, **options))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, byte_level])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_become_the_librarys_tokens_cut_on_the_same_side(make, side):
    texts = [*ODD_TEXTS, *blocks()[:200:3], *blocks()[200::29]]
    tokenizer = make(texts)
    tokenizer.enable_truncation(12, direction=side)
    rows = [[text] for text in texts] + [[first, second] for first in texts[:14:2] for second in texts[:14:3]]
    library = fetch_packages(PROJECT / CACHE)["tokenizers.mjs"].as_uri()
    found = in_node(ENCODER, {"rules": json.loads(tokenizer.to_str()), "length": 12, "rows": rows, "library": library})
    for row, own in zip(rows, found, strict=True):
        wanted = tokenizer.encode(*row)
        assert (own["ids"], own["cut"]) == (wanted.ids, bool(wanted.overflowing)), row
        assert make is byte_level or own["types"] == wanted.type_ids, row  # RoBERTa has no token types
