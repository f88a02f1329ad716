"""Tokenised corpora on disk, by content: what was encoded once is read back as flat arrays."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ilu_cli.data.encode import Corpus, Packed, encode_corpus
from ilu_cli.recipe.specs import Form
from ilu_cli.runs.files import cache_dir, sha256
from ilu_cli.tasks import Example

LAYOUT = 2  # of the files, and of what encoding does; raise it when either changes


def tokenised(tokenizer: Any, examples: list[Example], form: Form, name: str) -> Corpus:
    """Encode examples, or read them from the cache under ILU_CACHE.

    The key is a hash of tokenizer, examples (and so of rows, task, and kind of answer) and form. A file appears whole
    or not at all: several processes may ask for the same corpus, and what a crash leaves is never taken for one.
    """
    file = cache_dir() / "tokens" / f"{key_of(tokenizer, examples, form)}.npz"
    known = _load(file)
    if known is None:
        known = encode_corpus(tokenizer, examples, form, name)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _save(file, known)
    return known


def key_of(tokenizer: Any, examples: list[Example], form: Form) -> str:
    """What a tokenised corpus depends on, as one hash."""
    import tokenizers
    import transformers

    versions = [LAYOUT, transformers.__version__, tokenizers.__version__]
    shape = form.model_dump(include={"max_length", "chat", "chat_system", "chat_date", "long"})
    digest = hashlib.sha256(json.dumps([versions, _tokenizer_digest(tokenizer), shape]).encode())
    for e in examples:
        lengths = f"{len(e.prompt)} {len(e.target)} {len(e.turn)} "
        digest.update((lengths + e.prompt + e.target + e.turn).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _tokenizer_digest(tokenizer: Any) -> list[Any]:
    """Hashes of the tokenizer's files, or of its state if it came from none."""
    folder = Path(tokenizer.name_or_path or "/nowhere")
    patterns = ("tokenizer*", "special_tokens_map.json", "chat_template*", "vocab*", "merges.txt", "added_tokens.json")
    files = sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})
    if files:
        return [[p.name, sha256(p)] for p in files]
    state = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.special_tokens_map), tokenizer.chat_template]
    return [hashlib.sha256(json.dumps(state).encode()).hexdigest()]


def _load(file: Path) -> Corpus | None:
    """Read a corpus; None if there is none, or what is there is damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Corpus(Packed(arrays["ids"], arrays["ends"], arrays["starts"]), int(arrays["truncated"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(file: Path, corpus: Corpus) -> None:
    packed = corpus.items if isinstance(corpus.items, Packed) else Packed.of(corpus.items)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".part-", delete=False) as part:
        try:
            np.savez(part, ids=packed.ids, ends=packed.ends, starts=packed.starts, truncated=corpus.truncated)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(file)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
