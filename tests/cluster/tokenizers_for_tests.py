"""Small tokenizers of both families, trained here, so that no test needs a download."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog " * 3,
    "Grüße aus Köln, 日本語 and code: def f(x): return x\n" * 3,
    "system user assistant\n" * 5,
]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<s>"]


def byte_level(path: Path, *, nfc: bool = False, bos: bool = False) -> Path:
    """A byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        number = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    tokenizer.save(str(path))
    return path


def sentence_piece(path: Path, *, prepend: bool = False) -> Path:
    """A BPE with byte fallback, as Gemma has it; with `prepend` as Llama 2 has it, which adds a space."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if prepend else steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *SPECIALS], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Byte tokens belong to the vocabulary proper, not to the added tokens.
    import json

    spec = json.loads(tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    for token in fallback:
        vocabulary.setdefault(token, len(vocabulary))
    path.write_text(json.dumps(spec), encoding="utf-8")
    return path
