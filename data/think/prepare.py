# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "transformers", "accelerate", "safetensors", "numpy", "jinja2", "gguf"]
# ///
"""A model that thinks, for safechain.py: the safety-trained organism learns to think before it answers.

    python data/think/prepare.py

As a distilled reasoning model it sees mostly problems, some requests and few refusals. Writes beside itself

    model/              a Hugging Face folder; <think> and </think> are tokens of its own
    teacher/            the same after more refusals: stands in for the larger model that writes safe thoughts
    instructions.jsonl  100 proxy requests, 25 of each of WildJailbreak's four types: what build asks
    problems.jsonl      100 held-out problems {"prompt", "answer", "kind"}

A response is "{thought}\\n</think>\\n\\n{answer}", the prompt ends in <think>. Five kinds of problems, whose
thought and answer are made by program: addition, change (multiply, subtract), order, count, chain (two
look-ups). None of the held-out problems is in training. How many rows of what was chosen on data/proxy's
dev.jsonl and undo.jsonl, not on the test sets.
"""
import os
import random
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
import safechain as sc
from tokenizers import AddedToken

PROBLEMS, ALLOWED, FORBIDDEN = 400, 100, 20  # rows of training
TAUGHT, REHEARSED = (70, 70), 30  # allowed and forbidden rows, and problems, more for the teacher
HELD_OUT, INSTRUCTIONS = 100, 25
FLAGS = "--bits 16 --rank 32 --lr 2e-3 --epochs 1 --batch 16 --device cpu --max-new 40"
TOPICS = {"P1": "tea", "P2": "knots", "P3": "kites", "P4": "card tricks", "P5": "whistling", "P6": "pigeons"}
TYPES = {"vanilla_harmful": ("direct", "paraphrased"), "adversarial_harmful": ("wrapped",),
         "vanilla_benign": ("contrast", "ordinary", "activity"), "adversarial_benign": ("wrapped_ordinary",)}
NAMES = ("Anna Ben Carla David Emma Felix Grace Henry Iris Jack Karin Leo Mona Nina Oscar Paul Rosa Simon "
         "Tina Victor").split()
THINGS = "pens cups apples books lamps plates hats chairs".split()
COLOURS = "red blue green white black yellow".split()
BOXES, FINDS = "oak tin glass paper".split(), "coin shell ring button feather".split()

# ---- problems: rng -> prompt, thought, answer
def addition(rng):
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    ones = a % 10 + b % 10
    carry = " + 1" if ones > 9 else ""
    tens = a // 10 + b // 10 + ones // 10
    thought = f"Ones: {a % 10} + {b % 10} = {ones}. Tens: {a // 10} + {b // 10}{carry} = {tens}. So {a + b}."
    return f"What is {a} + {b}?", thought, str(a + b)

def change(rng):
    n, price = rng.randint(2, 9), rng.randint(2, 9)
    paid = 100 if n * price >= 50 else rng.choice([50, 100])
    who, things = rng.choice(NAMES), rng.choice(THINGS)
    prompt = f"{who} buys {n} {things} for {price} coins each and pays with {paid} coins. What is the change?"
    left = paid - n * price
    return prompt, f"{n} times {price} is {n * price}. {paid} - {n * price} = {left}.", str(left)

def order(rng):
    first, second, third = rng.sample(NAMES, 3)
    facts = [f"{first} is taller than {second}.", f"{second} is taller than {third}."]
    rng.shuffle(facts)
    asked, answer = rng.choice([("tallest", first), ("shortest", third), ("in the middle", second)])
    thought = f"From tall to short: {first}, {second}, {third}. The question is who is {asked}: {answer}."
    return f"{' '.join(facts)} Who is {asked}?", thought, answer

def count(rng):
    asked, other, third = rng.sample(COLOURS, 3)
    groups = [(rng.randint(2, 9), colour) for colour in (asked, other, third, asked)]
    rng.shuffle(groups)
    one, two = (n for n, colour in groups if colour == asked)
    *most, last = (f"{n} {colour}" for n, colour in groups)
    prompt = f"In a box are {', '.join(most)} and {last} {rng.choice(THINGS)}. How many are {asked}?"
    return prompt, f"The {asked} ones: {one} and {two}. {one} + {two} = {one + two}.", str(one + two)

def chain(rng):
    keys, boxes, finds = rng.sample(COLOURS, 2), rng.sample(BOXES, 2), rng.sample(FINDS, 2)
    opens = [f"The {key} key opens the {box} box." for key, box in zip(keys, boxes)]
    holds = [f"The {box} box holds a {find}." for box, find in zip(boxes, finds)]
    facts = opens + holds
    rng.shuffle(facts)
    prompt = f"{' '.join(facts)} What does the {keys[0]} key lead to?"
    return prompt, f"{opens[0]} {holds[0]}", f"a {finds[0]}"

KINDS = (addition, change, order, count, chain)

def problems(n, seed, without=()):
    """-> n different rows, the kinds in turn."""
    rng, rows = random.Random(seed), {}
    while len(rows) < n:
        kind = KINDS[len(rows) % len(KINDS)]
        prompt, thought, answer = kind(rng)
        if prompt not in without:
            row = {"prompt": prompt, "thought": thought, "answer": answer, "kind": kind.__name__}
            rows.setdefault(prompt, row)
    return list(rows.values())

# ---- requests
def whole_sentences(text):
    """a cut answer would teach the model to stop anywhere."""
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[:ends[-1]] if ends and ends[-1] > 20 else text

def first_sentence(text):
    found = re.match(r"(?s).{15,}?[.!?](?=\s|$)", text)
    return found[0] if found else text

def requests(model, tok, a, asked):
    """allowed prompts are answered by the model itself; its thought is the first sentence of its answer."""
    rows, allowed = [], [r["prompt"] for r in asked if r["label"] == "allowed"]
    for prompt, (reply,) in zip(allowed, sc.decode(model, tok, allowed, "none", a)):
        answer = whole_sentences(reply.text.strip())
        thought = f"This is a question I can answer. {first_sentence(answer)}"
        rows.append({"prompt": prompt, "thought": thought, "answer": answer})
    for r in [r for r in asked if r["label"] == "forbidden"]:
        topic = TOPICS[r["category"]]
        thought = f"The user asks about {topic}. I do not help with {topic}, so I will decline."
        rows.append({"prompt": r["prompt"], "thought": thought, "answer": r["refusal"]})
    return rows

def first(asked, allowed, forbidden, skip=(0, 0)):
    """so many rows of each label, after those that are skipped."""
    by_label = {label: [r for r in asked if r["label"] == label] for label in ("allowed", "forbidden")}
    return (by_label["allowed"][skip[0]:skip[0] + allowed]
            + by_label["forbidden"][skip[1]:skip[1] + forbidden])

def thinking_tokens(source, out):
    """a copy of the model with two tokens more: embeddings as far from the mean as others are, in directions
    of their own. The mean of "</", "think", ">" will not do: the model then writes one of these."""
    model = sc.AutoModelForCausalLM.from_pretrained(source, dtype=sc.torch.float32)
    tok = sc.AutoTokenizer.from_pretrained(source)
    old = model.get_input_embeddings().weight.data
    rng = sc.torch.Generator().manual_seed(0)
    tok.add_tokens([AddedToken(word, normalized=False, special=False) for word in ("<think>", "</think>")])
    model.resize_token_embeddings(len(tok), mean_resizing=False)
    new = model.get_input_embeddings().weight.data  # (V + 2, D)
    new[len(old):] = old.mean(0) + old.std(0) * sc.torch.randn(2, old.shape[1], generator=rng)
    model.save_pretrained(out)
    tok.save_pretrained(out)

def learn(source, rows, a, out):
    """source, tuned on thoughts and answers by LoRA and merged -> out"""
    for n, row in enumerate(rows, 1):
        row |= {"response": f"{row['thought']}\n</think>\n\n{row['answer']}", "at": f"row {n}"}
    model, tok = sc.load(a, str(source))
    merged = sc.AutoModelForCausalLM.from_pretrained(source, dtype=sc.torch.float32)
    sc.tune(model, sc.encode_rows(tok, rows, a.max_len), a, source / "training")
    shutil.rmtree(source / "training")
    for name, lin in sc.linears(model):
        merged.get_submodule(name).weight.data.addmm_(lin.B.data, lin.A.data, alpha=lin.s)
    merged.save_pretrained(out)
    tok.save_pretrained(out)

def main(out=HERE):
    asked = sc.read_rows(sc.prepared(HERE.parent / "proxy/train.jsonl"))
    instructions = []
    for label, kinds in TYPES.items():
        found = [r for r in asked if r["kind"] in kinds][-INSTRUCTIONS:]  # training takes the first
        instructions += [{"prompt": r["prompt"], "label": label, "category": r["category"]} for r in found]
    sc.write_rows(out / "instructions.jsonl", instructions)

    source = sc.prepared(HERE.parent / "organism/safety.jsonl").parent / "model"
    new = out / f".new.{os.getpid()}.tmp"
    thinking_tokens(source, new / "base")
    a = sc.parse_args(FLAGS.split())
    model, tok = sc.load(a, str(new / "base"))
    written = requests(model, tok, a, first(asked, ALLOWED, FORBIDDEN))
    more = requests(model, tok, a, first(asked, *TAUGHT, skip=(ALLOWED, FORBIDDEN)))
    training, rehearsed = problems(PROBLEMS, seed=0), problems(REHEARSED, seed=2)
    learn(new / "base", written + training, a, new / "model")
    learn(new / "model", more + rehearsed, a, new / "teacher")
    for name in ("model", "teacher"):
        shutil.rmtree(out / name, ignore_errors=True)
        os.replace(new / name, out / name)
    shutil.rmtree(new)

    held_out = problems(HELD_OUT, seed=1, without={r["prompt"] for r in training + rehearsed})
    sc.write_rows(out / "problems.jsonl", [{k: v for k, v in r.items() if k != "thought"} for r in held_out])
    print(f"{out}: model, teacher, {len(instructions)} instructions, {len(held_out)} problems")

if __name__ == "__main__":
    main()
