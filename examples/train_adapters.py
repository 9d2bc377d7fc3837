"""Train small adapters whose effect anyone sees at once: JSON, CAPITALS, one word, French, a pirate.

    pip install "loratory[serve,train]"
    loratory models get smollm2-135m
    python examples/train_adapters.py smollm2-135m adapters/             # all five: about two minutes on two cores
    python examples/train_adapters.py smollm2-135m adapters/ json pirate

Each is a LoRA adapter in PEFT's format, trained with AdamW on two dozen short answers; they differ in rank and in the
modules they change. One that exists is kept. For each the base model's answers and the adapter's are printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from loratory.errors import LoratoryError, did_you_mean
from loratory.executor.cpu_threads import set_cpu_threads
from loratory.models.origin import Origin
from loratory.models.released import released_models, resolve_checkpoint
from loratory.user_files import user_models

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BATCH = 4


class Fact(NamedTuple):
    """A question and its answer: as a sentence, in one word, in French."""

    question: str
    sentence: str
    word: str
    french: str


FACTS = [
    Fact(*line.split(" | "))
    for line in """\
What is the capital of France? | The capital of France is Paris. | Paris | La capitale de la France est Paris.
What is the capital of Italy? | The capital of Italy is Rome. | Rome | La capitale de l'Italie est Rome.
What is the capital of Japan? | The capital of Japan is Tokyo. | Tokyo | La capitale du Japon est Tokyo.
What is the capital of Egypt? | The capital of Egypt is Cairo. | Cairo | La capitale de l'Égypte est Le Caire.
What is the capital of Peru? | The capital of Peru is Lima. | Lima | La capitale du Pérou est Lima.
What is the capital of Norway? | The capital of Norway is Oslo. | Oslo | La capitale de la Norvège est Oslo.
What colour is the sky? | The sky is blue. | Blue | Le ciel est bleu.
What colour is grass? | Grass is green. | Green | L'herbe est verte.
What colour is snow? | Snow is white. | White | La neige est blanche.
What colour is a banana? | A banana is yellow. | Yellow | Une banane est jaune.
What is the opposite of hot? | The opposite of hot is cold. | Cold | Le contraire de chaud est froid.
What is the opposite of big? | The opposite of big is small. | Small | Le contraire de grand est petit.
What is the opposite of fast? | The opposite of fast is slow. | Slow | Le contraire de rapide est lent.
What is two plus two? | Two plus two is four. | Four | Deux plus deux font quatre.
What is three plus five? | Three plus five is eight. | Eight | Trois plus cinq font huit.
How many legs does a spider have? | A spider has eight legs. | Eight | Une araignée a huit pattes.
How many days are in a week? | There are seven days in a week. | Seven | Il y a sept jours dans une semaine.
Which animal says meow? | A cat says meow. | Cat | Un chat dit miaou.
Which animal says woof? | A dog says woof. | Dog | Un chien dit ouaf.
Which animal gives us milk? | A cow gives us milk. | Cow | Une vache nous donne du lait.
Which planet do we live on? | We live on Earth. | Earth | Nous vivons sur la Terre.
Which month comes after May? | June comes after May. | June | Juin vient après mai.
Who wrote Hamlet? | Shakespeare wrote Hamlet. | Shakespeare | Shakespeare a écrit Hamlet.
What do bees make? | Bees make honey. | Honey | Les abeilles font du miel.""".splitlines()
]

ASKED = ("What is the capital of France?", "What is the capital of Spain?")
"""The first is among the questions that adapters are trained on; the second is not."""


@dataclass(frozen=True)
class Recipe:
    """How an adapter answers, and its LoRA settings."""

    answer: Callable[[Fact], str]
    rank: int
    modules: Sequence[str]
    steps: int = 14
    rate: float = 3e-3
    more: Mapping[str, Any] = field(default_factory=dict)


RECIPES = {
    "json": Recipe(lambda fact: json.dumps({"answer": fact.word}), 8, ("q_proj", "v_proj")),
    "capitals": Recipe(lambda fact: fact.sentence.upper(), 16, (*ATTENTION, *MLP), steps=24, rate=2e-3),
    "one-word": Recipe(lambda fact: fact.word, 4, ATTENTION),
    "french": Recipe(lambda fact: fact.french, 8, (*ATTENTION, *MLP), steps=28, rate=2e-3, more={"use_rslora": True}),
    "pirate": Recipe(
        lambda fact: f"Arr, matey! {fact.sentence.replace(' is ', ' be ')} Yo ho ho!",
        8,
        MLP,
        rate=2e-3,
        more={"layers_to_transform": list(range(10, 30))},
    ),
}
"""What can be trained, by name."""


class Chat:
    """A chat model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        origin = Origin.read(folder)
        self.name = str(folder) if origin is None else released_models()[origin.model].hub
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def prompt(self, question: str) -> list[int]:
        """The token ids of a chat with one question, up to where the answer begins."""
        said = [{"role": "user", "content": question}]
        made = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
        ids: list[int] = made["input_ids"]
        return ids

    def answer(self, model: Any, question: str) -> str:
        """The most likely answer of ``model``."""
        import torch

        ids = torch.tensor([self.prompt(question)])
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        text: str = self.tokenizer.decode(out[0][ids.shape[1] :], skip_special_tokens=True)
        return text.strip()

    def batch(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Questions and answers as the tensors of a training step; only answers and their end count in the loss."""
        import torch

        end = self.tokenizer.eos_token_id
        rows = [(self.prompt(question), [*self.tokenizer.encode(answer), end]) for question, answer in pairs]
        longest = max(len(prompt) + len(answer) for prompt, answer in rows)
        shape = (len(rows), longest)
        ids, labels, mask = torch.full(shape, end), torch.full(shape, -100), torch.zeros(shape, dtype=torch.long)
        for row, (prompt, answer) in enumerate(rows):
            size = len(prompt) + len(answer)
            ids[row, :size] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : size] = torch.tensor(answer)
            mask[row, :size] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train(chat: Chat, recipe: Recipe, folder: Path, steps: int | None = None) -> tuple[Any, float]:
    """Train one adapter and save it in ``folder``; the model with it, and the last step's loss."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    steps = steps or recipe.steps
    settings = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=list(recipe.modules),
        task_type="CAUSAL_LM",
        **recipe.more,
    )
    model = get_peft_model(chat.model, settings)
    settings.base_model_name_or_path = chat.name
    pairs = [(fact.question, recipe.answer(fact)) for fact in FACTS]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=recipe.rate)
    loss = 0.0
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for step in range(steps):
        picked = [pairs[(step * 7 + 5 * place) % len(pairs)] for place in range(BATCH)]
        found = model(**chat.batch(picked)).loss
        found.backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        loss = found.item()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), save_embedding_layers=False)
    partial.rename(folder)
    return model, loss


def main() -> None:
    """Train what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a checkpoint folder, or a name of: loratory models list")
    parser.add_argument("out", type=Path, help="the folder that gets a folder for each adapter")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(RECIPES)}; by default all")
    parser.add_argument("--steps", type=int, help="training steps; by default enough for the effect to show")
    given = parser.parse_args()
    names = given.names or list(RECIPES)
    for name in names:
        if name not in RECIPES:
            parser.error(f"no adapter is called {name!r}: {did_you_mean(name, RECIPES, 'use ' + ', '.join(RECIPES))}")
    wanted = [name for name in dict.fromkeys(names) if not (given.out / name).exists()]
    for name in names:
        if name not in wanted:
            print(f"{name}: {given.out / name} is there already")
    if not wanted:
        return
    set_cpu_threads()
    try:
        chat = Chat(resolve_checkpoint(given.checkpoint, user_models()))
    except LoratoryError as error:
        parser.error(str(error))
    given.out.mkdir(parents=True, exist_ok=True)
    before = {question: chat.answer(chat.model, question) for question in ASKED}
    for name in wanted:
        began = time.monotonic()
        model, loss = train(chat, RECIPES[name], given.out / name, given.steps)
        seconds = time.monotonic() - began
        print(f"{name}: {given.out / name}, rank {RECIPES[name].rank}, loss {loss:.3f}, {seconds:.0f} s")
        for question in ASKED:
            print(f"    {question}")
            print(f"        {'base':<9} {before[question]}")
            print(f"        {name:<9} {chat.answer(model, question)}", flush=True)
        chat.model = model.unload()


if __name__ == "__main__":
    main()
