"""Tiny models and random adapters for tests where only the path matters, and the reference that served answers are held against.

A one-layer random Llama with SmolLM2's tokenizer loads in a second and answers nonsense, always the same nonsense: enough to tell
whose weights answered. Everything is seeded.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

TINY_HIDDEN = 64
Chat = list[dict[str, str]]


def make_tiny_llama(folder: Path, tokenizer_from: Path, *, seed: int = 0) -> None:
    """Write a random one-layer Llama (12 MB in float32, all but 0.2 MB of it the embedding) with the tokenizer and chat template there."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TINY_HIDDEN,
        intermediate_size=2 * TINY_HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,  # of 32: the smallest that vLLM's CPU attention takes
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.5,  # far apart, so that which token wins is never a matter of rounding
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_random_adapter(
    folder: Path,
    base_folder: Path,
    *,
    seed: int,
    rank: int = 8,
    target_modules: Sequence[str] = ("q_proj", "v_proj", "o_proj"),
    scale: float = 0.5,
    base_name: str | None = None,
) -> None:
    """Write a PEFT LoRA folder for the Llama in `base_folder`, with random weights in A and in B (PEFT itself starts B at zero).

    Each product B·A has entries of about `scale` times the size of the base's: 0.5 changes greedy answers for certain. `base_name` is
    what its config calls the base; by default the folder's name.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(base_folder / "model.safetensors", framework="pt") as base:
        for key in sorted(base.keys()):
            module = key.removesuffix(".weight")
            if module.rpartition(".")[2] not in target_modules:
                continue
            weight = base.get_tensor(key)
            size = (scale * weight.std().item() / rank**0.5) ** 0.5
            prefix = f"base_model.model.{module}"
            tensors[f"{prefix}.lora_A.weight"] = size * torch.randn(rank, weight.shape[1], generator=random)
            tensors[f"{prefix}.lora_B.weight"] = size * torch.randn(weight.shape[0], rank, generator=random)
    assert tensors, f"{base_folder} has none of the modules {target_modules}"
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name or base_folder.name,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(target_modules),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def reference_answers(base_folder: Path, adapter_folder: Path | None, prompts: Sequence[Chat], tokens: int = 32) -> list[list[int]]:
    """What transformers + peft answer greedily in float32: exactly `tokens` new token ids for each chat."""
    return references(base_folder, [adapter_folder], prompts, tokens)[0]


def references(
    base_folder: Path,
    adapter_folders: Sequence[Path | None],
    prompts: Sequence[Chat],
    tokens: int = 32,
    *,
    guesses: Sequence[Sequence[Sequence[int]]] | None = None,
) -> list[list[list[int]]]:
    """The same for several adapters (None: the base) of a base that is read once: for each, token ids for each chat.

    The end token is an ordinary token here, as it is served with `ignore_eos`: so both sides go on past it in the same way.
    `guesses` of the answers change nothing but the time: as far as one is right it takes one pass instead of one for each token.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    base.generation_config.eos_token_id = None
    found = []
    for folder, guessed in zip(adapter_folders, guesses or [[()] * len(prompts)] * len(adapter_folders), strict=True):
        if folder is None:
            found.append(_greedy(base, tokenizer, prompts, tokens, guessed))
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # PEFT would go on with weights of its own making
            model = PeftModel.from_pretrained(base, str(folder)).eval()
        found.append(_greedy(model, tokenizer, prompts, tokens, guessed))
        base = model.unload()
    return found


def _greedy(model: Any, tokenizer: Any, prompts: Sequence[Chat], tokens: int, guesses: Sequence[Sequence[int]]) -> list[list[int]]:
    import torch

    answers: list[list[int]] = []
    for chat, guess in zip(prompts, guesses, strict=True):
        # One at a time: padding a batch would change the sums, and with them now and then a token.
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            known = _right_part(model, prompt, guess[:tokens])
            if len(known) < tokens:
                begun = torch.cat([prompt, torch.tensor([known], dtype=prompt.dtype)], dim=1)
                left = tokens - len(known)
                attended = torch.ones_like(begun)
                output = model.generate(begun, attention_mask=attended, max_new_tokens=left, do_sample=False, eos_token_id=None)
                known += output[0, begun.shape[1] :].tolist()
        answers.append(known)
        assert len(known) == tokens, f"{len(known)} of {tokens} tokens came: something still stops at the end token"
    return answers


def _right_part(model: Any, prompt: Any, guess: Sequence[int]) -> list[int]:
    """The beginning of `guess` that is what the model says greedily: each token is its choice after those before it."""
    import torch

    if not guess:
        return []
    guessed = torch.cat([prompt, torch.tensor([guess], dtype=prompt.dtype)], dim=1)
    chosen = model(guessed).logits[0, prompt.shape[1] - 1 : -1].argmax(dim=-1).tolist()
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, guess, strict=True)))
    return list(guess[:right])
