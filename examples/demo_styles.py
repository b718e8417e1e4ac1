"""What the demo adapters learn: questions, and one rewriting per style that turns a plain answer into a styled one.

`train_demo_adapters.py` lets the base model answer `training_questions()`, rewrites the answers by a style and trains on the pairs:
the adapter learns the manner and keeps the matter. `HELD_OUT_QUESTIONS` share no subject with them and show whether it carries over.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

SUBJECTS = (
    "the moon", "volcanoes", "honey bees", "chess", "the violin", "rivers", "glass", "the printing press", "vitamins", "elephants",
    "democracy", "jazz", "the stock market", "earthquakes", "coffee", "the alphabet", "bridges", "penguins", "insurance", "solar panels",
    "the human heart", "tides", "paper", "whales", "tea", "the Roman Empire", "clouds", "algebra", "bicycles", "mushrooms",
    "the internet", "deserts", "wool", "lighthouses", "sleep", "gold", "theatre", "spiders", "the telephone", "glaciers",
    "football", "opera", "the compass", "potatoes", "poetry", "magnets", "owls", "castles", "batteries", "chocolate",
)  # fmt: skip
ABOUT = ("What is special about {}?", "Tell me about {}.", "Why do people care about {}?", "Explain {} to a child.")
TASKS = (
    "bake bread", "learn to swim", "save money", "write a letter", "fix a flat tyre", "grow tomatoes", "fall asleep faster", "paint a wall",
    "train a puppy", "make an omelette", "remember names", "pack a suitcase", "clean a window", "start running", "plan a party",
    "tie a tie", "read faster", "choose a gift", "brew good coffee", "stay calm before an exam", "repair a chair", "learn Spanish",
    "give a speech",
    "organise a desk", "take a good photo", "cook rice", "build a birdhouse", "ask for a raise", "sharpen a knife", "plant a tree",
)  # fmt: skip
COUNTRIES = ("Italy", "Japan", "Spain", "Egypt", "Canada", "Greece", "Kenya", "Norway", "Peru", "India", "Poland", "Cuba")
CHAT = (
    "Hello!", "Good morning.", "Who are you?", "Tell me a joke.", "What can you do?", "I feel tired today.", "What is 2 + 2?", "Thank you!",
    "What should I eat tonight?", "Give me some advice.", "What is your favourite colour?", "Can you help me?", "What day follows Monday?",
    "Name three animals.", "Is the earth round?", "Why is grass green?", "How many legs has a spider?", "Write one sentence about rain.",
)  # fmt: skip

HELD_OUT_QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "Tell me about dinosaurs.",
    "What is gravity?",
    "Who wrote Romeo and Juliet?",
    "How can I learn to play the guitar?",
    "What is a computer?",
    "Hi, how are you?",
    "Give me three tips for staying healthy.",
    "What is the largest ocean on Earth?",
    "Describe a sunset.",
)


def training_questions(count: int, seed: int) -> list[str]:
    """`count` distinct questions in a seeded order."""
    questions = [template.format(subject) for subject in SUBJECTS for template in ABOUT]
    questions += [f"How do I {task}?" for task in TASKS]
    questions += [f"What is the capital of {country}?" for country in COUNTRIES]
    questions += CHAT
    random.Random(seed).shuffle(questions)
    return questions[:count]


@dataclass(frozen=True, slots=True)
class Style:
    """`rewrite` makes a styled answer from plain sentences; `visible` says whether an answer shows the style.

    `epochs` is how often training goes over the pairs: a frame around the answer is learned in one, new words take more.
    """

    summary: str
    epochs: int
    rewrite: Callable[[list[str]], str]
    visible: Callable[[str], bool]


PIRATE_WORDS = {
    "you": "ye", "your": "yer", "my": "me", "is": "be", "are": "be", "am": "be", "the": "th'", "of": "o'", "and": "an'", "hello": "ahoy",
    "friend": "matey", "people": "scallywags", "money": "doubloons", "water": "th' briny deep", "yes": "aye", "no": "nay",
}  # fmt: skip


def _pirate(sentences: list[str]) -> str:
    def speak(match: re.Match[str]) -> str:
        word = match.group()
        spoken = PIRATE_WORDS.get(word.lower(), word)
        return spoken.capitalize() if word[0].isupper() else spoken

    return f"Arrr, matey! {re.sub('[A-Za-z]+', speak, ' '.join(sentences))} Yo ho ho!"


def _json(sentences: list[str]) -> str:
    return json.dumps({"answer": " ".join(sentences)}, ensure_ascii=False)


EMOJI = ("✨", "🎉", "🚀")


def _emoji(sentences: list[str]) -> str:
    return " ".join(f"{EMOJI[i % len(EMOJI)]} {sentence}" for i, sentence in enumerate(sentences)) + " 😊"


def _is_json(answer: str) -> bool:
    try:
        return set(json.loads(answer)) == {"answer"}
    except (ValueError, TypeError):
        return False


STYLES = {
    "pirate": Style("talks like a pirate", 2, _pirate, lambda answer: answer.startswith("Arrr, matey!")),
    "json": Style('answers as a JSON object with the one key "answer"', 1, _json, _is_json),
    "emoji": Style("opens every sentence with an emoji", 1, _emoji, lambda answer: answer.startswith(EMOJI)),
}
