"""`random:tiny`: a small untrained Llama, and a tokenizer that knows the words of the made-up weather's answers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from sensorium.data.fields import channels, facts, grammar
from sensorium.data.fields.demo_regions import ASKED, REGIONS
from sensorium.parts.encoders_base import quiet

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANDOM = "random:tiny"
_PAD, _END = "<pad>", "<end>"


def random_tokenizer() -> PreTrainedTokenizerBase:
    """Byte pairs of the grammar's sentences, digits apart; what they lack is spelled in bytes."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_pairs(), pad_token=_PAD, eos_token=_END, clean_up_tokenization_spaces=False
    )


@functools.cache
def _byte_pairs() -> Tokenizer:
    """The same always: the learning of byte pairs knows no chance (Sennrich et al. 2016, arXiv 1508.07909)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # more than there are: whole words
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[_PAD, _END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    return tokenizer


def _sentences() -> Iterator[str]:
    """Every template with some of the words that fill it, and every word at least twice."""
    about = [one for one in map(channels.known, ASKED) if one is not None]
    words = {
        **facts.CLOSED,
        "variable": [one.label for one in about],
        "place": [*REGIONS, "the area around"],
        "unit": sorted({one.unit for one in about} | {"standard deviations"}),
    }
    words |= {"axis": ["northern and southern", "western and eastern"], "size": [""]}
    most = max(map(len, words.values()))
    for templates in (*grammar.QUESTIONS.values(), *grammar.ANSWERS.values()):
        for template in templates:
            for number in range(most):
                yield template.format(**{name: those[number % len(those)] for name, those in words.items()})


def random_llm() -> PreTrainedModel:
    """A Llama of 4 layers, width 128; the same weights always, and no other draw is changed by it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_pairs()
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.token_to_id(_PAD),
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(_END),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
