"""Train the demo adapters in `examples/adapters/demo/` on the embedded model: on two CPU cores, a few minutes each.

    python examples/train_demo_adapters.py                 all of them
    python examples/train_demo_adapters.py pirate json     these
    python examples/train_demo_adapters.py --show          train nothing; the base and each adapter answer the held-out questions

The base model answers some 170 questions, `demo_styles.py` rewrites the answers, and a rank-4 LoRA on the attention projections learns
the pairs. All is seeded. Needs peft (requirements/dev.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from demo_styles import HELD_OUT_QUESTIONS, STYLES, Style, training_questions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[1]))
from cluster.embedded import MODEL_ID, prepare

ADAPTERS = Path(__file__).parent / "adapters" / "demo"
SEED = 7
QUESTIONS = 176
ANSWER_CHARACTERS = 150  # of the base model's answer, in whole sentences: short answers train fast and end early
BATCH = 8
LEARNING_RATE = 4e-3
OTHER_SYSTEM = "You are a helpful assistant."  # for every fourth pair, so that the style does not hang on the template's own system message


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo adapters on the embedded model.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(STYLES)}; all when left out")
    parser.add_argument("--show", action="store_true", help="train nothing; answer the held-out questions")
    arguments = parser.parse_args()
    names = arguments.names or list(STYLES)
    if unknown := [name for name in names if name not in STYLES]:
        parser.error(f"no style is called {', '.join(unknown)}: choose from {', '.join(STYLES)}")

    transformers_logging.disable_progress_bar()
    home = Path(os.environ.get("LORIKEET_HOME") or Path.home() / ".lorikeet")
    folder = prepare(home, print)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if arguments.show:
        show(folder, tokenizer, names)
        return
    questions = training_questions(QUESTIONS, SEED)
    print(f"the base model answers {len(questions)} questions", flush=True)
    pairs = plain_pairs(load_base(folder), tokenizer, questions)
    print(f"{len(pairs)} have a short plain answer", flush=True)
    for name in names:
        train(load_base(folder), tokenizer, pairs, name)


def load_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def chat(question: str, system: str | None = None) -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": question}]


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, questions: list[str], max_tokens: int) -> list[str]:
    """Each question's answer at temperature 0."""
    found: list[str] = []
    for start in range(0, len(questions), 24):
        chats = [chat(question) for question in questions[start : start + 24]]
        batch = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True)
        output = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
        found += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def plain_pairs(model: Any, tokenizer: Any, questions: list[str]) -> list[tuple[str, list[str]]]:
    """Questions, each with the first whole sentences of the base model's answer; those without one are left out."""
    pairs = []
    for question, answer in zip(questions, answers(model, tokenizer, questions, max_tokens=48), strict=True):
        flat = re.sub(r"\s+", " ", answer).strip()
        sentences = re.findall(r"[A-Z][^.!?]*[.!?](?=\s|$)", flat)
        while sum(map(len, sentences)) > ANSWER_CHARACTERS:
            sentences.pop()
        if sentences:
            pairs.append((question, sentences))
    return pairs


def encode(tokenizer: Any, pairs: list[tuple[str, list[str]]], style: Style) -> list[tuple[list[int], int]]:
    """Token ids of each styled chat, with the length of its prompt: the loss is taken over what follows."""
    encoded = []
    for i, (question, sentences) in enumerate(pairs):
        messages = chat(question, OTHER_SYSTEM if i % 4 == 3 else None)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt).input_ids
        answer_ids = tokenizer(style.rewrite(sentences) + tokenizer.eos_token).input_ids
        encoded.append((prompt_ids + answer_ids, len(prompt_ids)))
    return encoded


def batches(encoded: list[tuple[list[int], int]], pad_id: int) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch: shuffled, right-padded, prompts and padding masked out of the labels."""
    order = torch.randperm(len(encoded)).tolist()
    for start in range(0, len(order), BATCH):
        rows = [encoded[i] for i in order[start : start + BATCH]]
        width = max(len(ids) for ids, _ in rows)
        yield {
            "input_ids": torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([[-100] * prompt + ids[prompt:] + [-100] * (width - len(ids)) for ids, prompt in rows]),
        }


def answer_loss(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens; the vocabulary's logits, a fifth of the work, are taken there only."""
    llama = model.get_base_model()
    hidden = llama.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    counted = targets != -100
    return torch.nn.functional.cross_entropy(llama.lm_head(hidden[counted]), targets[counted])


def train(base: Any, tokenizer: Any, pairs: list[tuple[str, list[str]]], name: str) -> None:
    torch.manual_seed(SEED)
    started = time.monotonic()
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    encoded = encode(tokenizer, pairs, STYLES[name])
    steps = STYLES[name].epochs * -(-len(encoded) // BATCH)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    step = 0
    for _ in range(STYLES[name].epochs):
        for batch in batches(encoded, tokenizer.pad_token_id):
            loss = answer_loss(model, **batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 10 == 0 or step == steps:
                print(f"{name}: step {step} of {steps}, loss {loss.item():.2f}, {time.monotonic() - started:.0f} s", flush=True)
    save(model, name)


def save(model: Any, name: str) -> None:
    """Write the adapter as float16: half the size, and exact again when loaded into a float32 model."""
    folder = ADAPTERS / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        config = json.loads((Path(scratch) / "adapter_config.json").read_text())
        tensors = load_file(Path(scratch) / "adapter_model.safetensors")
    config["base_model_name_or_path"] = MODEL_ID
    config["target_modules"] = sorted(config["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    halves = {key: tensors[key].to(torch.float16).contiguous() for key in sorted(tensors)}
    weights = folder / "adapter_model.safetensors"
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    (folder / "README.md").write_text(
        f"# demo/{name}\n\nA LoRA adapter (rank 4, attention only) for SmolLM2-135M-Instruct that {STYLES[name].summary}.\n"
        "Made by `examples/train_demo_adapters.py`, to show that an adapter is at work; it knows no more than its small base. Apache-2.0.\n"
    )


def show(folder: Path, tokenizer: Any, names: list[str]) -> None:
    """Print every held-out question with the base model's and each adapter's answer, then how many answers show the style."""
    questions = list(HELD_OUT_QUESTIONS)
    found = {"base": answers(load_base(folder), tokenizer, questions, max_tokens=80)}
    for name in names:
        found[name] = answers(PeftModel.from_pretrained(load_base(folder), ADAPTERS / name), tokenizer, questions, max_tokens=80)
    for i, question in enumerate(questions):
        print(f"\n# {question}")
        for name, texts in found.items():
            print(f"{name:>7}: {texts[i]}")
    for name in names:
        visible = sum(STYLES[name].visible(text) for text in found[name])
        print(f"{name}: the style is visible in {visible} of {len(questions)} answers")


if __name__ == "__main__":
    main()
