"""Encoders, language models and tokenizers of Hugging Face, from a folder or from the hub; nothing of theirs is run as code."""

from __future__ import annotations

import copy
import os
from typing import Any, Literal

from safetensors import SafetensorError

from curation.classes import MakeError

# Stands where the name of an encoder or tokenizer could: hashed n-grams, which need nothing of Hugging Face.
HASHED = "hashed"
INSTALL = 'pip install "lorif-curation[llm]"'
# What transformers raises where files are missing, broken or of another model.
UNREADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)


Kind = Literal["encoder", "language model", "tokenizer"]
LOADERS = {"encoder": "AutoModel", "language model": "AutoModelForCausalLM", "tokenizer": "AutoTokenizer"}


def pretrained(kind: Kind, name: str, error: MakeError) -> Any:
    """What is called ``name``: a folder, a file in GGUF format, or a name on the hub.

    Weights in GGUF are read as float32, which takes about half a minute for 100 million of them.

    Raises:
        CurationError: made by ``error``: transformers does not import, or there is no such thing.
    """
    try:
        import transformers
    except ImportError as reason:
        raise error(
            [f"{kind} {name!r} needs transformers, which does not import ({reason}). Run: {INSTALL}"]
        ) from reason
    gguf = name.endswith(".gguf")
    if os.path.isabs(name) and not (os.path.isfile(name) if gguf else os.path.isdir(name)):
        raise error([f"{kind} {name!r}: there is no such {'file' if gguf else 'folder'}"])
    loader: Any = getattr(transformers, LOADERS[kind])
    try:
        if gguf:
            folder, file = os.path.split(os.path.abspath(name))
            found = loader.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
            return found if kind == "tokenizer" else _plain(found)
        return loader.from_pretrained(name, trust_remote_code=False)
    except UNREADABLE as reason:
        first = str(reason).strip().splitlines()[0]
        raise error(
            [
                f"no Hugging Face {kind} could be loaded from {name!r}: {first} "
                "Give a folder written by save_pretrained or a name on the hub"
            ]
        ) from reason


def _plain(model: Any) -> Any:
    """The same weights in a model that can be trained, saved and cast: transformers takes one read from GGUF for quantised."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    return plain.eval()
