"""Small tokenizers in each family's construction, made with the `tokenizers` library from the corpus below, and texts.

What is compared is the way from a text to ids and back; the vocabularies are tiny, so that the files are.
"""
import json
import math
import random
from collections import Counter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps; it's what they're there for",
    "def main(values):\n    for value in values:\n        print(value)\n\n    return None\n",
    "Der schnelle Fuchs läuft über die Straße. Größe zählt; naïve café, señor.",
    "数学は楽しい。東京タワーは高い。今日は天気がいい。我们喜欢学习数学。",
    "0 1 12 123 1234 3.14 2024-05-17 1,000,000",
    "Привет, мир! Это тест. สวัสดีชาวโลก नमस्ते दुनिया 안녕하세요 세계",
    "hello world hello there Hello World HELLO WORLD I'll we've don't",
]
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "hello world", "Hello  World", " hello", "   hello   world   ", "\n", "\n\n\n", "\t\ta\t",
    "a\r\nb\r\n\r\nc", "the quick brown fox jumps over the lazy dog", "It's what THEY'RE for, I'LL say; it'ſ odd 'K",
    "def f(x):\n    if x:\n        return [x, 1]\n\n\n    return None  \n", "x" * 30, "ab" * 20 + " " * 20 + "c",
    "1", "12", "123", "1234567", "3.14159, 1,000,000 and ½ ² Ⅳ ٣٤", "2024-05-17T12:00:00Z",
    "naïve café — señor Straße", "e\u0301 vs é, A\u030a vs Å, ﬁ ½ Ⅷ", "\u1100\u1161\u11a8 각", "שָׁלוֹם عَرَبِيّ",
    "数学は楽しい。東京タワー", "สวัสดีชาวโลก", "नमस्ते दुनिया", "안녕하세요 세계", "我们喜欢学习数学,今天天气很好",
    "🙂", "👩‍👩‍👧‍👦 and 🏳️‍🌈!", "🇨🇭🇯🇵 1️⃣", "a🙂b\u200d\ufe0f",
    "zero\u200bwidth\ufeffbom\u00a0nbsp\u3000wide\u2028line\u0085next\u180emvs", "\x00\x01\x1c\x7f", "\U0010ffff\ufffd\ue000",
    "<s>", "</s> text <s>", "a<s>b", "<|end|>", "x <|end|> y", "<|end|>\n<|end|>  <|end|>", "<tool>a</tool>", " <tool> ",
    "word", "swordfish word words word.", "  word  ", "MaSk mask Mask", "<left>  <right>", "a  <left>b", "a<right>  b",
    "<|user|>\nhi<|end|>\n<|assistant|>", "<unk>", "▁", "a▁b ▁c", "Ġ", "aĠb", "<0x41>", "<0xE4>", "##ing",
    "http://x.y/z?q=1&r=%20#f", "{\"a\": [1, null, \"é\"]}", "<think>\nhm\n</think>\n\nOk", "a" + "\u0301" * 20, "...!!!???——",
    "snake_case camelCase PascalCase SCREAMING kebab-case", "AAAA BBBB aaBB", "\\n \\t \"quoted\" 'single'",
]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CASED = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+E"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*E"
          r"|N| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = _CASED.replace("E", "").replace("|N|", r"|\p{N}|")
O200K = _CASED.replace("E", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("|N|", r"|\p{N}{1,3}|")
# Of each flag one, special and not.
ADDED = [
    AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False),
    AddedToken("<|end|>", special=True, normalized=False), AddedToken("<tool>", special=False, normalized=False),
    AddedToken("</tool>", special=False, normalized=False), AddedToken("<think>", special=False, normalized=True),
    AddedToken("word", special=False, single_word=True, normalized=False),
    AddedToken("<left>", special=True, lstrip=True, normalized=False),
    AddedToken("<right>", special=True, rstrip=True, normalized=False),
    AddedToken("mask", special=False, lstrip=True, rstrip=True, normalized=True),
]


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def begins(tokenizer, token="<s>"):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, tokenizer.token_to_id(token))])


def byte_level(pre_tokenizer, normalizer=None, ignore_merges=False, bos=False, added=True):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=390, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    if ignore_merges:
        # A whole word that no merges lead to is taken all the same.
        grown = json.loads(tokenizer.to_str())
        for word in ("Ġtest", "main"):
            grown["model"]["vocab"].setdefault(word, len(grown["model"]["vocab"]))
        tokenizer = Tokenizer.from_str(json.dumps(grown))
    if added:
        tokenizer.add_tokens(ADDED)
    post = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([post, begins(tokenizer)]) if bos else post
    return tokenizer


def pieces(shape, added=True):
    """SentencePiece's BPE: `shape` sets the normalizer, pre-tokenizer and decoder."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    # Without the line of many scripts: their characters are spelled in bytes.
    trained.train_from_iterator(CORPUS[:5] + CORPUS[6:], trainers.BpeTrainer(vocab_size=240, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for piece in [*learnt["vocab"], "▁"]:
        vocab.setdefault(piece, len(vocab))
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("<unk>", normalized=False, special=True)])
    tokenizer.add_tokens(ADDED if added else ADDED[:2])
    shape(tokenizer)
    tokenizer.post_processor = begins(tokenizer)
    return tokenizer


def fallback(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if strip else steps)


def llama2(tokenizer):
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = fallback(True)


def newer_llama2(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = fallback(True)


def always(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always", split=True)


def phi3(tokenizer):
    llama2(tokenizer)
    tokenizer.add_special_tokens([
        AddedToken(name, rstrip=True, normalized=False, special=True) for name in ("<|user|>", "<|assistant|>")])


def gemma(tokenizer):
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = fallback(False)


def unigram():
    # Characters and words by how often they are there: the library's own training is another one at each run.
    words = [word for line in CORPUS for word in ("▁" + line.replace("\n", " ").replace(" ", " ▁")).split(" ")]
    counted = Counter(words) + Counter("".join(words))
    total = sum(counted.values())
    scores = {piece: round(math.log(count / total), 6) for piece, count in sorted(counted.items()) if piece}
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *scores.items()]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_tokens(ADDED)
    tokenizer.post_processor = begins(tokenizer)
    return tokenizer


BYTE_LEVEL = {
    "gpt2, olmo2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "add_prefix_space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])),
    "llama3, glm4": lambda: byte_level(split(LLAMA3), ignore_merges=True, bos=True),
    "qwen2, qwen3": lambda: byte_level(split(QWEN2), normalizers.NFC()),
    "tekken": lambda: byte_level(split(TEKKEN), ignore_merges=True, bos=True),
    "gpt-oss": lambda: byte_level(split(O200K)),
}
PIECES = {
    "llama2, mistral": lambda: pieces(llama2, added=False),
    "llama2, added": lambda: pieces(llama2),
    "not legacy": lambda: pieces(newer_llama2),
    "metaspace": lambda: pieces(always),
    "phi3": lambda: pieces(phi3),
    "gemma": lambda: pieces(gemma),
    "unigram": unigram,
}


def is_broken_late(tokenizer, ids):
    """A run of bytes that begins with a whole character and goes on with bytes that are none: a whole decoding makes
    U+FFFD of all of them, a stream has told the character before."""
    specials = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    run = b""
    for id in [*ids, None]:
        piece = "" if id is None else tokenizer.id_to_token(id)
        if len(piece) == 6 and piece.startswith("<0x"):
            run += bytes([int(piece[3:5], 16)])
            continue
        # A special token is passed over.
        if id is not None and id in specials:
            continue
        try:
            run.decode()
        except UnicodeDecodeError as wrong:
            if wrong.start > 0:
                return True
        run = b""
    return False


def continued(tokenizer):
    """Of some texts, cut in two: what the second part's ids add to the text of the first's, and their text alone."""
    for number in range(6, 60, 3):
        ids = tokenizer.encode(TEXTS[number], add_special_tokens=True).ids
        for at in range(1, len(ids), 4):
            before, whole, alone = (tokenizer.decode(part) for part in (ids[:at], ids, ids[at:]))
            # A character that the cut goes through is told whole; here only what is plain is asked.
            if "\ufffd" not in before + alone and whole.startswith(before):
                added = whole[len(before):]
                yield [number, at, added] + ([alone] if alone != added else [])


def golden(name, tokenizer):
    """Ids of each text as it stands and with what is put around it; text of them without special tokens and with.

    A text that comes back as it was is not written again."""
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True).ids
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        back = [tokenizer.decode(plain, skip_special_tokens=skip) for skip in (True, False)]
        case = {"ids": plain, "back": [None if b == text else b for b in back]}
        cases.append({**case, "around": ids} if ids != plain else case)
    dice = random.Random(name)
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    loose = []
    while len(loose) < 20:
        ids = [dice.randrange(vocab) for _ in range(dice.randint(1, 9))]
        if is_broken_late(tokenizer, ids):
            continue
        loose.append([ids, *(tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))])
    return {"name": name, "tokenizer": json.loads(tokenizer.to_str()), "cases": cases, "loose": loose,
            "continued": list(continued(tokenizer))}


def goldens(constructions):
    made = [golden(name, build()) for name, build in constructions.items()]
    return {"texts": TEXTS, "tokenizers": made}
