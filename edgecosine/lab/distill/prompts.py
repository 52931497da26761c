"""Subjects of the training conversations: openers, which begin a user's turn, by domain.

No data set is needed: the target reads its chat template up to the user's turn and an opener of
this file, and writes the rest of the turn and then the answer. The held-out prompts were written by
hand (`held_out.json`), and no opener repeats one of them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Final

DOMAINS: Final = ("code", "rewriting", "facts", "stories")
GENERALIST: Final = "generalist"
HELD_OUT: Final = Path(__file__).with_name("held_out.json")

_OPENERS: Final[dict[str, tuple[str, ...]]] = {
    "code": (
        "Write a {language} function that", "Write a {language} function to {act}",
        "Write a {language} program that", "Write a {language} class for a {thing}",
        "How do I {act} in {language}?", "Implement a {thing} in {language}",
        "Explain what this {language} code does:\n", "Fix the bug in this {language} code:\n",
        "Write a unit test for a {language} function that", "Write an SQL query that",
        "Write a regular expression that matches", "Write a shell script that",
        "Write HTML and CSS for a", "Add comments to this {language} function:\n",
        "Convert this {language} code to", "Write a {language} script to {act}",
        "Create a simple {thing} using {language}", "In {language}, how can I",
    ),
    "rewriting": (
        "Rewrite the following text in a more formal tone:\n\n{start}",
        "Rewrite this paragraph in simple words:\n\n{start}",
        "Summarize the following text in one sentence:\n\n{start}",
        "Summarize this passage:\n\n{start}",
        "Correct the grammar and spelling of this text:\n\n{start}",
        "Make this email more polite:\n\n{start}",
        "Rewrite this message so that it is more concise and professional:\n\n{start}",
        "Shorten the following paragraph:\n\n{start}",
        "Turn this text into bullet points:\n\n{start}",
        "Paraphrase the following text:\n\n{start}",
        "Rewrite the following in the past tense:\n\n{start}",
        "Give a title and a summary for this article:\n\n{start}",
        "Rewrite this sentence in the active voice:\n\n{start}",
        "List the main points of the following text:\n\n{start}",
    ),
    "facts": (
        "What is {topic}?", "Explain how {topic} works", "Explain {topic}", "Why do",
        "What are the main causes of", "What is the difference between", "How does",
        "What are the benefits of", "Describe the history of", "Who was", "What happened in",
        "Explain to a child", "List five facts about {topic}", "What are the steps to",
        "How can I", "Give me tips for", "What is the capital of", "Explain the concept of",
        "What are some examples of", "How do scientists", "Compare", "Why is {topic} important?",
        "What should I know about {topic}", "Define",
    ),
    "stories": (
        "Write a short story about {hero}", "Tell me a story about {hero} who",
        "Write a dialogue between {hero} and {hero}", "Write a poem about {topic}",
        "Continue this story: {hero}", "Write a funny story about", "Write a scene in which {hero}",
        "Pretend that you are {hero} and", "Write a bedtime story about {hero}",
        "Write a conversation between two friends who", "Describe a place where",
        "Write a letter from {hero} to", "Write a mystery story in which", "I feel",
        "Let's talk about", "Write a short play about {hero}", "Once upon a time",
        "Write the beginning of a science fiction story about", "Imagine a world where",
        "Write a diary entry of {hero}",
    ),
}  # fmt: skip
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "language": (
        "Python", "Python", "Python", "JavaScript", "Java", "C", "C++", "Rust", "Go",
        "TypeScript", "Bash", "Ruby",
    ),
    "act": (
        "sort a list", "read a CSV file", "count words in a string", "reverse a string",
        "find duplicates in a list", "parse JSON", "compute the factorial of a number",
        "download a web page", "merge two dictionaries", "check whether a number is prime",
        "convert temperatures", "generate random passwords", "find the longest word",
        "rename files in a directory", "validate an email address", "remove blank lines",
        "compute an average", "search a list", "connect to a database", "format a date",
    ),
    "thing": (
        "stack", "queue", "linked list", "binary search tree", "bank account", "calculator",
        "to-do list", "cache", "timer", "matrix", "shopping cart", "chat server", "web page",
        "number guessing game", "logger", "priority queue", "hash table", "rectangle",
    ),
    "topic": (
        "photosynthesis", "gravity", "inflation", "the immune system", "a black hole",
        "the water cycle", "democracy", "machine learning", "the French Revolution", "DNA",
        "an electric motor", "the stock market", "climate change", "the moon", "music",
        "vaccination", "the Roman Empire", "a volcano", "the internet", "sleep", "autumn",
        "the ocean", "recycling", "a computer", "the human heart", "plate tectonics",
        "evolution", "a battery", "friendship", "the solar system", "bread", "rain",
    ),
    "hero": (
        "a young girl", "an old fisherman", "a robot", "a dragon", "a detective", "a talking cat",
        "two brothers", "a lonely king", "a teacher", "a lost astronaut", "a brave mouse",
        "a wizard", "a farmer", "a tree", "a ghost", "a chef", "a traveller", "a musician",
        "a dog", "a scientist",
    ),
    "start": (
        "The", "In recent years", "Dear", "Hi team,", "I am writing to", "Scientists have",
        "When I was", "Our company", "The city of", "She", "Many people", "It was",
        "The meeting", "Yesterday", "Climate", "The new", "According to", "We are",
        "He", "The history of", "Technology has", "Last summer", "Students", "The book",
        "A good", "Please", "The project", "hey,", "i dont", "Water", "Music", "During the",
    ),
}  # fmt: skip


def opener(domain: str, rng: random.Random) -> str:
    """A random beginning of a user's turn, which the target continues."""
    text = rng.choice(_OPENERS[domain])
    while "{" in text:
        name = text[text.index("{") + 1 : text.index("}")]
        text = text.replace("{" + name + "}", rng.choice(_WORDS[name]), 1)
    return text


def held_out() -> dict[str, list[str]]:
    """Prompts by domain that no drafter was trained on."""
    prompts: dict[str, list[str]] = json.loads(HELD_OUT.read_text(encoding="utf-8"))
    return prompts
