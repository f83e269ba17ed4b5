"""Any Hugging Face causal language model, trained whole or by low-rank adapters (LoRA).

Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import ModelError
from curation.huggingface import INSTALL, pretrained
from curation.models.language import LanguageModel


class HuggingFaceLanguageModel(LanguageModel):
    """A causal language model by its name on the hub or its folder; the data's tokenizer must be its own.

    A checkpoint holds its configuration and all of its weights, so neither name nor folder is needed to load one.

    Args:
        name: on the hub, a folder written by ``save_pretrained``, or a GGUF file.
        lora: what peft's ``LoraConfig`` takes (``r``, ``lora_alpha``, ``lora_dropout``, ``target_modules``, ...), plain values;
            only the adapters are trained then. ``{}``: peft's defaults, on all linear layers. None: everything is trained.
        vocab_size: how many ids the data makes; the model must know at least as many.
        max_tokens: most tokens of a row of the data; the model must take as many.
        tokenizer: digest of the data's tokenizer.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        lr: learning rate of AdamW.
        weight_decay: decoupled weight decay of AdamW.
        schedule: ``"constant"`` or ``"cosine"``.
        config: of the model, as a checkpoint holds it: weights are then not read from ``name``.

    Raises:
        ModelError: an argument is out of its range, transformers (or peft) is not installed, there is no such model, or it
            does not fit the data.
    """

    folder_arguments = ("name",)

    def __init__(
        self,
        name: str,
        lora: Mapping[str, Any] | None = None,
        vocab_size: int | None = None,
        max_tokens: int | None = None,
        tokenizer: str | None = None,
        gradient_checkpointing: bool = False,
        lr: float = 2e-5,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(lr, weight_decay, schedule)
        name, lora = str(name), None if lora is None else dict(lora)
        network = _loaded(name) if config is None else _empty(config)
        _check_fits(name, network.config, vocab_size, max_tokens)
        config = json.loads(network.config.to_json_string(use_diff=False))
        self.save_hyperparameters()
        self.network: nn.Module = network if lora is None else _with_adapters(network, lora)
        if gradient_checkpointing:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            # The hook that makes embeddings require gradients is for reentrant checkpoints; an index cannot be built over it.
            if hasattr(network, "_require_grads_hook"):
                network.disable_input_require_grads()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of ids [B, T], padded on the right."""
        logits: Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    def continued(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, end_id: int, pad_id: int
    ) -> list[list[int]]:
        """What comes after each of one batch of prompts, as :func:`generate`, with the keys and values of earlier tokens kept."""
        from transformers import GenerationConfig

        device, longest = next(self.parameters()).device, max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        mask = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()  # [B, T], padded on the left
        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=end_id, pad_token_id=pad_id
        )
        network: Any = self.network
        made = network.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)[:, longest:].tolist()
        return [row[: row.index(end_id)] if end_id in row else row for row in made]


def _error(problems: Sequence[str]) -> ModelError:
    return ModelError(f"HuggingFaceLanguageModel: {'; '.join(problems)}")


def _loaded(name: str) -> Any:
    return pretrained("language model", name, _error).float()


def _empty(config: Mapping[str, Any]) -> Any:
    """A model of this configuration; its weights are about to be loaded."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as reason:
        raise _error([f"it needs transformers, which does not import ({reason}). Run: {INSTALL}"]) from reason
    values = dict(config)
    made = AutoConfig.for_model(values.pop("model_type"), **values)
    return AutoModelForCausalLM.from_config(made, trust_remote_code=False).float()  # type: ignore[no-untyped-call]


def _with_adapters(network: Any, lora: Mapping[str, Any]) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as reason:
        raise _error([f"lora needs peft, which does not import ({reason}). Run: {INSTALL}"]) from reason
    try:
        adapters = LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora})
        return get_peft_model(network, adapters)
    except (TypeError, ValueError) as reason:
        raise _error([f"peft refused lora {dict(lora)}: {reason}"]) from reason


def _check_fits(name: str, config: Any, vocab_size: int | None, max_tokens: int | None) -> None:
    problems = []
    if vocab_size is not None and vocab_size > config.vocab_size:
        problems.append(
            f"the data makes {vocab_size} different ids, {name!r} knows {config.vocab_size}: give the data its own tokenizer "
            f"(`tokenizer: {name}` in the data's init_args)"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if max_tokens is not None and positions is not None and max_tokens > positions:
        problems.append(f"max_tokens is {max_tokens} in the data, {name!r} takes {positions} at most")
    if problems:
        raise _error(problems)
