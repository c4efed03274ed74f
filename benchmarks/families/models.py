"""Models of libraries, as they come, small and with random weights: what each is called with, and where it is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, N, LENGTH, CLASSES = 97, 8, 12, 3
LAYERS = 4


@dataclass
class Family:
    """One model.

    Args:
        name: of the library's class.
        make: the model.
        batch: one minibatch.
        loss: (output, target) → scalar.
        cut: the module that starts the second stage.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor]
    cut: str


def next_token(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of every token."""
    return F.cross_entropy(output.logits.transpose(1, 2), target)


def of_class(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of one label a sample."""
    return F.cross_entropy(output.logits, target)


def ids(length: int = LENGTH) -> Tensor:
    """Of N sequences."""
    return torch.randint(VOCABULARY, (N, length))


def text() -> dict[str, Tensor]:
    """A minibatch for a language model."""
    return {"input_ids": ids(), "target": ids()}


def labels() -> Tensor:
    """One a sample."""
    return torch.randint(CLASSES, (N,))


def pairs() -> dict[str, Tensor]:
    """A minibatch of two sequences of different lengths."""
    return {"input_ids": ids(10), "decoder_input_ids": ids(), "target": ids()}


def sound() -> dict[str, Tensor]:
    """A minibatch of spectra and text."""
    spectra = torch.randn(N, 16, 40, dtype=torch.float64)
    return {"input_features": spectra, "decoder_input_ids": ids(), "target": ids()}


def picture() -> dict[str, Tensor]:
    """A minibatch of labelled pictures."""
    return {"pixel_values": torch.randn(N, 3, 32, 32, dtype=torch.float64), "labels": labels()}


def sentence() -> dict[str, Tensor]:
    """A minibatch of labelled sentences."""
    return {"input_ids": ids(), "attention_mask": torch.ones(N, LENGTH, dtype=torch.int64), "labels": labels()}


def families(layers: int = LAYERS) -> list[Family]:
    """Those of `transformers`, and with `peft`, where that is installed, one that it has changed.

    Args:
        layers: of most of them, an even number; they are cut in the middle. To record a model takes time by the layer.
    """
    import transformers as t

    t.logging.set_verbosity_error()
    middle = layers // 2
    small = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    decoder = {**small, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}
    decoder |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    gpt2 = t.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=layers, n_head=4, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    t5 = t.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=max(2, layers - 1), num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    whisper = t.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=layers // 2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=20,
        max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    vit = t.ViTConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64, image_size=32,
        patch_size=8, num_labels=CLASSES,
    )  # fmt: skip
    resnet = t.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=CLASSES, layer_type="basic"
    )  # fmt: skip
    bert = t.BertConfig(**small, intermediate_size=64, num_labels=CLASSES)
    cuts = {
        t.GPT2LMHeadModel: (gpt2, text, next_token, [f"transformer.h.{middle}"]),
        t.LlamaForCausalLM: (t.LlamaConfig(**decoder), text, next_token, [f"model.layers.{middle}"]),
        t.MistralForCausalLM: (t.MistralConfig(**decoder), text, next_token, [f"model.layers.{middle}"]),
        t.Qwen2ForCausalLM: (t.Qwen2Config(**decoder), text, next_token, [f"model.layers.{middle}"]),
        t.GemmaForCausalLM: (t.GemmaConfig(**decoder, head_dim=8), text, next_token, [f"model.layers.{middle}"]),
        t.BertForSequenceClassification: (bert, sentence, of_class, [f"bert.encoder.layer.{middle}"]),
        t.ViTForImageClassification: (vit, picture, of_class, [f"vit.layers.{middle}"]),
        t.ResNetForImageClassification: (resnet, picture, of_class, ["resnet.encoder.stages.2"]),
        t.T5ForConditionalGeneration: (t5, pairs, next_token, ["encoder.block.1", "decoder.block.1"]),
        t.WhisperForConditionalGeneration: (whisper, sound, next_token, ["model.decoder.layers.1"]),
    }
    found = [
        Family(kind.__name__, partial(kind, configuration), batch, loss, cut)
        for kind, (configuration, batch, loss, places) in cuts.items()
        for cut in places
    ]
    try:
        import peft
    except ImportError:
        return found
    lora = peft.LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    made = lambda: peft.get_peft_model(t.GPT2LMHeadModel(gpt2), lora)  # noqa: E731
    return [*found, Family("GPT-2 with LoRA", made, text, next_token, f"base_model.model.transformer.h.{middle}")]
