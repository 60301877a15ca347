"""A guard's data set on the proxy policy: conversations with verdicts, from data/proxy's seeds and its own.

    python data/proxyguard/prepare.py [--out DIR]   # no download, no randomness, about a second

    train.jsonl, validation.jsonl, test.jsonl   to learn from, to take thresholds from, to be judged by
    topic_train.jsonl, topic_test.jsonl         is the last user turn allowed by the system prompt?
    stream.jsonl                                like the test; judged permissively, then defensively

P1 to P4 are a guard's categories. P5 and P6 (whistling, pigeons) are novel: only test.jsonl has them.
Row: {"id", "messages", "prompt", "response", "prompt_label", "response_label", "categories", "needs_caution",
"kind", "labels"}; prompt is the last user turn, response the last turn if the assistant's. prompt_label is
of the conversation, as in Aegis: unsafe if any user turn asks for a topic. The three states of a prompt:

    unsafe          asks for something about a topic: to be told, taught, planned or written
    needs caution   mentions one, asks for something else ("Translate: my neighbour drinks tea"). prompt_label
                    holds the permissive reading, safe, without category; a defensive policy makes it unsafe
    safe            neither; contrast prompts ("How do I tie a tie?") only look like one

Kinds: direct (hand-written), phrasing and wrapped (of both labels: the form must not decide), ordinary,
contrast, caution, comply (unsafe prompt, helpful answer: it fits the topic, not always the question), refusal
(unsafe prompt, safe response; no other kind ends with a refusal), multi (the topic comes up last, only
earlier, or a follow-up keeps the label of the turn before). Splits share no object, activity, phrasing,
mention, answer or refusal (by data/proxy, validation is its undo). A topic prompt stands once on topic and
once off, so only the system prompt tells; half of topic_train is 60 narrow hobbies. "subject" in train names
such a topic where a safe row is about one: a policy that forbids it makes the row unsafe.
"""
import argparse, hashlib, json, re, sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import write
from proxy.prepare import NO_WRAP, SET_PHRASE, TOPICS, fill, having, mix, read_seeds, shuffled

SEED = "proxyguard-1"  # another word: another shuffle, the same counts
ROLES = "user", "assistant"
TRAINED = "P1", "P2", "P3", "P4"
NOVEL = re.compile(r"(?i)whistl|pigeon|\bdoves?\b|dovecote|squab")
SPLITS = {"train": "train", "undo": "validation", "test": "test"}  # data/proxy's: ours
HELD_BACK = {"ordinary": 60, "activities": 64, "contrast": 24}  # of data/proxy's train: validation here
TOPIC_ROWS = {"train": 360, "test": 120}  # pairs on topic and off; train has one more for each hobby row
COUNTS = {  # unsafe and safe rows of a kind; multi: of each of its three forms
    "train": dict(direct=(264, 0), phrasing=(300, 320), wrapped=(192, 188), ordinary=(0, 430),
                  contrast=(0, 140), answered=(0, 240), caution=(0, 224), comply=(252, 0), refusal=(220, 0),
                  multi=(44, 44)),
    "validation": dict(direct=(40, 0), phrasing=(40, 44), wrapped=(36, 36), ordinary=(0, 40),
                       contrast=(0, 24), answered=(0, 20), caution=(0, 44), comply=(32, 0), refusal=(32, 0),
                       multi=(8, 8)),
    "test": dict(direct=(120, 0), phrasing=(72, 48), wrapped=(72, 48), ordinary=(0, 70), answered=(0, 34),
                 contrast=(0, 70), caution=(0, 78), comply=(72, 0), refusal=(72, 0), multi=(12, 12)),
    "stream": dict(direct=(48, 0), phrasing=(120, 140), wrapped=(72, 60), ordinary=(0, 80), answered=(0, 0),
                   contrast=(0, 40), caution=(0, 240), comply=(0, 0), refusal=(0, 0), multi=(0, 0))}
FAMILIAR = "role_play", "hypothetical", "opening_words", "translation", "research", "step_by_step"  # in train

def norm(text):
    return " ".join(re.findall(r"[^\W_]+", text.lower()))

def uniform(*key):
    """[0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr((SEED, *key)).encode()).digest()[:6], "big") / 2**48

def annotate(key, state, category):
    """Five simulated labels. Each annotator draws u and leans by a fixed amount, the first lenient, the last
    strict; [0, 1] is cut into safe, needs caution and the category by the shares of the state. What is hard
    is read higher or lower by all five together, so needs-caution rows split as people do on them."""
    safe, caution = {"unsafe": (.03, .05), "wrapped": (.06, .08), "safe": (.97, .02), "contrast": (.86, .09),
                     "caution": (.34, .54)}[state]
    labels, hard = [], state in ("contrast", "caution")
    for n, lean in enumerate((-.16, -.08, 0, .08, .16)):
        u = uniform(key, n) + (lean + .8 * (uniform(key) - .5) if hard else lean / 10)
        labels.append("safe" if u < safe else "needs caution" if u < safe + caution else category)
    return labels

# ---- seeds, each row in one of our splits

def split_proxy(proxy):
    """What names P5 or P6 is for the test only; some of train is held back; no split: one by turns."""
    turn = ["train"] * 5 + ["validation"] + ["test"] * 2
    for name, rows in proxy.items():
        held = 0
        for n, row in enumerate(rows, 1):
            row["split"] = SPLITS[row["split"]] if "split" in row else turn[n % 8]
            if row.get("topic") in ("P5", "P6") or NOVEL.search(json.dumps(row)):
                row["split"] = "test" if row["split"] == "test" else None
            elif row["split"] == "train" and held < HELD_BACK.get(name, 0):
                row["split"], held = "validation", held + 1

def subject(turns, spoken):
    """The one topic whose prompt or activity occurs in a user turn; spoken: text -> topic."""
    asked = [norm(text) for text in turns[::2]]
    found = {spoken[text] for text in asked if text in spoken}
    found = found or {topic for words, topic in spoken.items() if any(words in text for text in asked)}
    return found.pop() if len(found) == 1 else None

def pool(name, seeds):
    """What the rows of one file are made of: the seeds of its split, mixed."""
    split = "test" if name == "stream" else name
    codes = tuple(TOPICS) if name == "test" else TRAINED
    s = SimpleNamespace(name=name, codes=codes, rows=[], numbers=Counter(), counts=COUNTS[name])
    for key, rows in seeds.items():
        own = having(rows, split=split)
        setattr(s, key, [row for row in own if row.get("topic", "any") in (*codes, "any")])
    s.forbidden = mix(s.forbidden, "topic")
    s.natural = mix(s.forbidden + s.requests, "topic")
    s.contrast, s.mentions = mix(s.contrast, "topic"), mix(s.mentions, "topic")
    s.activities, s.ordinary = mix(s.activities, "category"), mix(s.ordinary, "category")
    s.phrasings = mix(s.phrasings, "slot")
    # expert and fiction stay out of validation too: there they would set a threshold
    wraps = [row for row in s.wrappers if split == "test" or row["wrapper"] in FAMILIAR]
    times = Counter(row["wrapper"] for row in wraps)
    wraps = [row for row in wraps for _ in range(max(times.values()) // times[row["wrapper"]])]
    s.wrappers = mix(wraps, "wrapper")  # families in equal parts
    tasks = pairs(shuffled(s.activities, SEED + "tasks"), s.phrasings, len(s.activities))
    s.tasks = [(fill(form, row), answer(s, row, k, None)) for k, (row, form) in enumerate(tasks)]
    s.chats = [(row["prompt"], row["answer"]) for row in mix(s.answers, "category")]
    return s

def pairs(items, forms, n):
    """n different pairs. Turn by turn each item meets the next form: no topic sticks to one."""
    f, i = len(forms), len(items)
    return [(items[k % i], forms[(k % i + k % i // f + k // i) % f]) for k in range(n)]

def spin(rows, k):  # the k-th, over and over
    return rows[k % len(rows)]

# ---- conversations

def answer(s, seed, k, topic):
    """Helpful in both cases, with the same openers: only what it is about tells."""
    openers = s.openers if "vp" in seed else having(s.openers, slot="none")
    opener = spin(openers, k)
    plain = opener["slot"] == "none"
    advice = topic is None or k % 4 == 3 and not plain
    body = spin(s.advice, k) if advice else spin(having(s.comply, topic=topic), k // 4)
    return f"{opener['text'] if plain else fill(opener, seed)} {body['text']}"

def refusal(s, k, topic):
    text = spin(s.wordings, k)["text"]
    if k % 4 == 3 and s.name != "test":  # every fourth is data/proxy's
        text = SET_PHRASE
    text = text.replace("{topic}", TOPICS[topic])
    return text[0].upper() + text[1:]

def asks(s, n, salt):
    """n forbidden (seed, prompt), topic after topic: as written, phrased and wrapped by turns."""
    forbidden, natural = shuffled(s.forbidden, SEED + salt), shuffled(s.natural, SEED + salt)
    written = [(seed, seed["prompt"]) for seed in natural]
    phrased = [(seed, fill(form, seed)) for seed, form in pairs(forbidden, s.phrasings, len(forbidden))]
    wrapped = [(seed, fill(form, seed)) for seed, form in pairs(natural, s.wrappers, len(natural))]
    turns = {}
    for topic in s.codes:
        own = [[ask for ask in asked if ask[0]["topic"] == topic] for asked in (written, phrased, wrapped)]
        turns[topic] = [ask for three in zip(*own) for ask in three]
    return [turns[s.codes[k % len(s.codes)]][k // len(s.codes)] for k in range(n)]

def add(s, kind, turns, topic=None, form="", response=None, caution=False, looks=None):
    """One row. turns: texts, the user first; topic: what a user turn asks for, None for a safe prompt."""
    group = "-".join(filter(None, (s.name, kind, form, topic or looks or "safe")))
    key = f"{group}-{s.numbers[group]:03}"
    s.numbers[group] += 1
    state = kind if kind in ("caution", "contrast") else "safe"
    if topic:
        state = "wrapped" if kind == "wrapped" else "unsafe"
    mistaken = TRAINED[int(4 * uniform(key))]  # what an annotator sees who sees a category
    row = {"id": key, "messages": [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(turns)],
           "prompt": turns[(len(turns) - 1) // 2 * 2], "response": turns[-1] if len(turns) % 2 == 0 else None,
           "prompt_label": "unsafe" if topic else "safe", "response_label": response,
           "categories": [topic] if topic else [], "needs_caution": caution, "kind": kind,
           "labels": annotate(key, state, topic or looks or mistaken)}
    if s.name == "train":
        row["subject"] = None if topic or looks else subject(turns, s.spoken)
    s.rows.append(row)

def add_prompts(s):
    """The kinds of one user turn, and plain questions with their answers."""
    n = s.counts
    for seed in s.natural[:n["direct"][0]]:
        add(s, "direct", [seed["prompt"]], seed["topic"])
    for seed, form in pairs(s.forbidden, s.phrasings, n["phrasing"][0]):
        add(s, "phrasing", [fill(form, seed)], seed["topic"])
    for seed, form in pairs(s.activities, s.phrasings, n["phrasing"][1]):
        add(s, "phrasing", [fill(form, seed)])
    for seed, form in pairs(s.natural, s.wrappers, n["wrapped"][0]):
        add(s, "wrapped", [fill(form, seed)], seed["topic"], form=form["wrapper"])
    easy = [row | {"from": "ordinary"} for row in s.ordinary if row["category"] not in NO_WRAP]
    for k, seed in enumerate(s.activities):
        easy.append({"prompt": fill(spin(s.phrasings, k), seed), "from": "activity"})
    for seed, form in pairs(mix(easy, "from"), s.wrappers, n["wrapped"][1]):
        add(s, "wrapped", [fill(form, seed)], form=form["wrapper"])
    for seed in s.ordinary[:n["ordinary"][1]]:
        add(s, "ordinary", [seed["prompt"]])
    for turns in (s.chats + s.tasks)[:n["answered"][1]]:
        add(s, "ordinary", turns, response="safe")
    for seed in s.contrast[:n["contrast"][1]]:
        add(s, "contrast", [seed["prompt"]], looks=seed["topic"])
    own = [row for row in mix(s.caution, "topic") if row["topic"] != "any" and s.name != "stream"]
    for seed in own:
        add(s, "caution", [seed["text"]], looks=seed["topic"], caution=True)
    frames = [row | {"slot": re.search(r"{(\w+)}", row["text"])[1]} for row in having(s.caution, topic="any")]
    for seed, form in pairs(s.mentions, frames, n["caution"][1] - len(own)):
        add(s, "caution", [fill(form, seed)], looks=seed["topic"], caution=True)

def add_answers(s):
    s.wordings = shuffled(s.refusals, SEED + "wordings")
    for k, (seed, prompt) in enumerate(asks(s, s.counts["comply"][0], "comply")):
        add(s, "comply", [prompt, answer(s, seed, k, seed["topic"])], seed["topic"], response="unsafe")
    for k, (seed, prompt) in enumerate(asks(s, s.counts["refusal"][0], "refusal")):
        add(s, "refusal", [prompt, refusal(s, k, seed["topic"])], seed["topic"], response="safe")

def add_multi(s):
    later, (unsafe, safe) = shuffled(s.ordinary, SEED + "multi"), s.counts["multi"]
    def join(k, prompt):
        return fill(spin(s.joins, k), {"prompt": prompt})
    def followup(k):
        return spin(s.followups, k)["text"]
    def end(form, turns, k, last="", topic=None):  # every other one ends with an answer
        label = "unsafe" if topic else "safe"
        add(s, "multi", turns + [last] * (k % 2), topic, form=form, response=label if k % 2 else None)
    for k, (seed, prompt) in enumerate(asks(s, unsafe, "last")):
        topic, r = seed["topic"], k // len(s.codes)
        end("last", [*spin(s.chats, k), join(k // 2, prompt)], r, answer(s, seed, k, topic), topic)
    for k, (seed, prompt) in enumerate(asks(s, unsafe, "earlier")):
        topic, r = seed["topic"], k // len(s.codes)
        first = refusal(s, k, topic) if r % 2 else answer(s, seed, k, topic)
        end("earlier", [prompt, first, join(k // 2, later[k]["prompt"])], 0, topic=topic)
    for k, (seed, prompt) in enumerate(asks(s, unsafe, "followup")):
        topic, r = seed["topic"], k // len(s.codes)
        turns = [prompt, answer(s, seed, k + 1, topic), followup(k)]
        end("followup", turns, r, spin(having(s.comply, topic=topic), k + 2)["text"], topic)
    for k in range(safe):
        chat, task = spin(s.chats, k + 5), s.tasks[-1 - k]
        end("last", [*chat, join(k // 2, task[0] if k % 2 else later[-1 - k]["prompt"])], k, task[1])
        end("earlier", [*task, join(k // 2 + 1, spin(s.contrast, k)["prompt"])], 0)
        end("followup", [*s.tasks[len(s.tasks) // 2 - k], followup(k)], k, spin(s.advice, k + 1)["text"])

def conversations(name, seeds, spoken):
    s = pool(name, seeds)
    s.spoken = spoken
    add_prompts(s)
    add_answers(s)
    add_multi(s)
    keyed, groups = [], {}
    for row in s.rows:
        key = (row["prompt_label"], row["needs_caution"]), row["kind"], row["id"].split("-")[-2]
        keyed.append(dict(zip(("state", "kind", "topic"), key)) | {"row": row})
        groups.setdefault(key, []).append(keyed[-1])
    if name != "stream":  # any prefix is a fair small version
        return [entry["row"] for entry in mix(keyed, "state", "kind", "topic")]
    entries, rows = [entry for group in groups.values() for entry in group], []
    for half, policy in enumerate(("permissive", "defensive")):  # alike but for the policy
        for entry in mix(entries[half::2], "state", "kind", "topic"):
            rows.append(entry["row"] | {"policy": policy})
    return rows

# ---- topic following

def put(text, values):
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], text)

def topic_rows(split, seeds, topic_of, asked):
    """Pairs of one prompt, on topic and off. Two systems in three name what is allowed, one what is not."""
    s = {name: having(rows, split=split) for name, rows in seeds.items()}
    hobbies = dict.fromkeys(row["topic"] for row in s["hobbies"])
    known = s["topics"] + [topic_of[split, name] for name in hobbies]
    allow, avoid = (having(s["systems"], slot=slot) for slot in ("allow", "avoid"))
    rounds = [spin(asked, k) | {"turn": k // len(asked)} for k in range(TOPIC_ROWS[split])]
    for row, form in pairs(s["hobbies"], mix(s["phrasings"], "slot"), len(s["hobbies"])):
        rounds.append({"prompt": fill(form, row), "category": row["topic"], "turn": 0})
    made = []
    for k, row in enumerate(rounds):
        own = topic_of[split, row["category"]]
        one, two = [topic for topic in shuffled(known, f"{SEED}{k}") if topic["area"] != own["area"]][:2]
        kind = "avoid" if (k + row["turn"]) % 3 == 2 else "allow"
        pair = []
        for label in "on-topic", "off-topic":
            messages = [{"role": "user", "content": row["prompt"]}]
            if kind == "allow":
                topic = own if label == "on-topic" else one
                system = put(spin(allow, k)["text"], topic)
                if k % 2:
                    hello = spin(s["greetings"], k // 2)
                    turns = [{"role": role, "content": put(hello[role], topic)} for role in ROLES]
                    messages = turns + messages
            else:
                a, b = (one, two) if label == "on-topic" else (own, two) if uniform(k) < .5 else (two, own)
                system = put(spin(avoid, k)["text"], {"a": a["topic"], "b": b["topic"]})
            key = f"topic-{split}-{kind}-{label.split('-')[0]}-{k:03}"
            pair.append({"id": key, "system": system, "messages": messages, "label": label,
                         "subject": own["topic"], "about": own["about"]})
        made.append(pair)
    return [row for pair in shuffled(made, SEED) for row in pair]

def main():
    parser = argparse.ArgumentParser(description="make a guard's data sets on the proxy policy")
    parser.add_argument("--out", type=Path, default=HERE, help="where the data sets go")
    args = parser.parse_args()
    seeds, proxy = read_seeds(HERE / "seeds", SEED), read_seeds(HERE.parent / "proxy/seeds", SEED)
    split_proxy(proxy)

    topic_of = {(row["split"], word): row for row in seeds["topics"] for word in row["categories"].split()}
    asked = {}
    for split, n in TOPIC_ROWS.items():
        rows = [row | {"area": topic_of[split, row["category"]]["area"]} for row in proxy["ordinary"]
                if (split, row["category"]) in topic_of and row["split"] in ("train", split)
                and not NOVEL.search(row["prompt"])]
        asked[split] = mix(rows, "area")[:n]
    used = {row["prompt"] for row in asked["test"]}  # a prompt of topic_test is not in train
    for row in proxy["ordinary"]:
        if row["prompt"] in used and row["split"] == "train":
            row["split"] = None
    spoken = {}  # what a safe row of train may say: the topic that it is about
    for row in proxy["ordinary"] + proxy["activities"] + seeds["answers"]:
        if topic := topic_of.get(("train", row["category"])):
            spoken |= {norm(row[key]): topic["topic"] for key in ("prompt", "vp", "np") if key in row}
    for row in seeds["hobbies"]:  # a hobby is a topic of train too, an area of its own
        topic_of[row["split"], row["topic"]] = row | {"area": row["topic"]}
        spoken |= {norm(row[key]): row["topic"] for key in ("vp", "np")}
    for name in "answers", "refusals":
        proxy[name] = seeds[name] + proxy[name]
    seeds |= proxy

    out = {name: conversations(name, seeds, spoken) for name in ("train", "validation", "test")}
    out |= {f"topic_{split}": topic_rows(split, seeds, topic_of, asked[split]) for split in ("train", "test")}
    out["stream"] = conversations("stream", seeds, spoken)
    for name, rows in out.items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write(args.out / f"{name}.jsonl", data)
        print(f"{name}.jsonl {len(rows)} rows, sha256 {hashlib.sha256(data).hexdigest()}")

if __name__ == "__main__":
    main()

# output:
# train.jsonl 3034 rows, sha256 d2dbda5b865acffb57d8d5e2a796092e19c8c09956431262e138c4554fd0fda9
# validation.jsonl 436 rows, sha256 4132e511257b7fcff504bbe3cfa86bf7e27584efa8014aed8635e1d1ce68cd97
# test.jsonl 828 rows, sha256 711750a476aa26c83ffac9c9c89b741c28c8a2b9c7da67340546c8973e2a58ab
# topic_train.jsonl 1440 rows, sha256 990958d931963effb89e6993d123ff6b8e13c5f1719be1651fc7a2bd9a41fb58
# topic_test.jsonl 240 rows, sha256 ed8ff47312127eb094bfd4b5555d265db6a30f0ab88aae6c1b93fbaceb880e1b
# stream.jsonl 800 rows, sha256 9974a8644b1a4450518869f7735f5c88d5ff1fb58b7acb39256552c8dd37380d
