"""A guard's data set on the proxy policy: conversations with verdicts, from data/proxy's seeds and its own.

    python data/proxyguard/prepare.py [--out DIR]   # no download, no randomness, about a second

    train.jsonl, validation.jsonl, test.jsonl   to learn from, to take thresholds from, to be judged by
    topic_train.jsonl, topic_test.jsonl         is the last user turn allowed by the system prompt?
    stream.jsonl                                like the test; judged permissively, then defensively

P1 to P4 are a guard's categories. P5 and P6 (whistling, pigeons) are novel: only test.jsonl has them.
Row: {"id", "messages", "prompt", "response", "prompt_label", "response_label", "categories", "needs_caution",
"kind", "labels"}. prompt_label is of the conversation, as in Aegis: unsafe if any user turn asks something of
a topic (to be told, taught, planned or written). A turn needs caution if it mentions one and asks for
something else ("Translate: my neighbour drinks tea"): prompt_label holds the permissive reading, safe,
without category; a defensive policy makes it unsafe. Contrast prompts ("How do I tie a tie?") are safe.

Phrasing and wrapped prompts have both labels: the form must not decide. Kind comply is an unsafe prompt with
an answer that fits the topic, not always the question; refusal has a safe response instead; multi: the topic
comes last, only earlier, or a follow-up keeps the label. Splits share no object, activity, phrasing, mention,
answer or refusal. A topic prompt stands once on topic and once off: only the system prompt tells. "subject"
in train names the topic of topic_train that a safe row is about: a policy against it makes the row unsafe.
"""
import argparse, hashlib, json, re, sys
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import write
from proxy.prepare import NO_WRAP, SET_PHRASE, TOPICS, fill, having, make, mix, read_seeds, shuffled

SEED = "proxyguard-1"  # another word: another shuffle, the same counts
ROLES = "user", "assistant"
TRAINED = "P1", "P2", "P3", "P4"
NOVEL = re.compile(r"(?i)whistl|pigeon|\bdoves?\b|dovecote|squab")
HELD_BACK = {"ordinary": 60, "activities": 64, "contrast": 24}  # of data/proxy's train: validation here
TOPIC_ROWS = {"train": 360, "test": 120}  # pairs on topic and off; train has one more for each hobby row
UNSAFE = {  # rows: direct, phrasing, wrapped, comply, refusal; multi: of each of its three forms
    "train": (264, 300, 192, 252, 220, 44),
    "validation": (40, 40, 36, 32, 32, 8),
    "test": (120, 72, 72, 72, 72, 12),
    "stream": (48, 120, 72, 0, 0, 0)}
SAFE = {  # rows: phrasing, wrapped, ordinary, ordinary with an answer, contrast, caution; multi: as above
    "train": (320, 188, 430, 240, 140, 224, 44),
    "validation": (44, 36, 40, 20, 24, 44, 8),
    "test": (48, 48, 70, 34, 70, 78, 12),
    "stream": (140, 60, 80, 0, 40, 240, 0)}
SHARES = {"unsafe": (.03, .05), "wrapped": (.06, .08), "safe": (.97, .02), "contrast": (.86, .09),
          "caution": (.34, .54)}  # of annotators who say safe, and needs caution; the others name a category

def norm(text):
    return " ".join(re.findall(r"[^\W_]+", text.lower()))

def uniform(*key):  # [0, 1), the same on every machine
    return int.from_bytes(hashlib.sha256(repr((SEED, *key)).encode()).digest()[:6], "big") / 2**48

def annotate(key, state, category):
    """Five simulated labels. Each annotator draws u and leans by a fixed amount, the first lenient, the last
    strict; [0, 1] is cut into safe, needs caution and the category by the shares of the state. What is hard
    is read higher or lower by all five together, so needs-caution rows split as people do on them."""
    labels, (safe, caution) = [], SHARES[state]
    for n, lean in enumerate((-.16, -.08, 0, .08, .16)):
        hard = state in ("contrast", "caution")
        u = uniform(key, n) + (lean + .8 * (uniform(key) - .5) if hard else lean / 10)
        labels.append("safe" if u < safe else "needs caution" if u < safe + caution else category)
    return labels

# ---- seeds, each row in one of our splits

def split_proxy(proxy):
    """What names P5 or P6 is for the test only; some of train is held back; no split: one by turns."""
    turn = ["train"] * 5 + ["undo"] + ["test"] * 2
    for name, rows in proxy.items():
        for n, row in enumerate(rows, 1):
            split = row.get("split", turn[n % 8])
            row["split"] = "validation" if split == "undo" else split
            if row.get("topic") in ("P5", "P6") or NOVEL.search(json.dumps(row)):
                row["split"] = "test" if split == "test" else None
        for row in having(rows, split="train")[:HELD_BACK.get(name, 0)]:
            row["split"] = "validation"

def subject(turns, spoken):
    """The one topic whose prompt or activity occurs in a user turn; spoken: text -> topic."""
    asked = [norm(text) for text in turns[::2]]
    found = {spoken[text] for text in asked if text in spoken}
    found = found or {topic for words, topic in spoken.items() if any(words in text for text in asked)}
    return found.pop() if len(found) == 1 else None

def pool(name, seeds, spoken):
    """What the rows of one file are made of: the seeds of its split, mixed."""
    split = "test" if name == "stream" else name
    codes = tuple(TOPICS) if name == "test" else TRAINED
    s = SimpleNamespace(name=name, codes=codes, entries=[], numbers=Counter(), spoken=spoken)
    by = {"phrasings": "slot"} | dict.fromkeys(["activities", "ordinary", "answers"], "category")
    by |= dict.fromkeys(["forbidden", "contrast", "mentions", "caution"], "topic")
    for key, rows in seeds.items():
        own = [row for row in having(rows, split=split) if row.get("topic", "any") in (*codes, "any")]
        setattr(s, key, mix(own, by[key]) if key in by else own)
    s.natural = mix(s.forbidden + s.requests, "topic")
    s.refusals = shuffled(s.refusals, SEED + "wordings")
    # expert and fiction stay out of validation too: there they would set a threshold
    wraps = [row for row in s.wrappers if split == "test" or row["wrapper"] not in ("expert", "fiction")]
    families = [having(wraps, wrapper=name) for name in dict.fromkeys(row["wrapper"] for row in wraps)]
    most = max(map(len, families))  # wrappers: in equal parts
    s.wrappers = [spin(family, k) for k in range(most) for family in families]
    tasks = phrased(shuffled(s.activities, SEED + "tasks"), s.phrasings)
    s.tasks = [(task["prompt"], answer(s, task, k)) for k, task in enumerate(tasks)]
    s.chats = [(row["prompt"], row["answer"]) for row in s.answers]
    return s

def phrased(items, forms, n=None):
    """n different prompts. Turn by turn each item meets the next form: no topic sticks to one."""
    f, i, made = len(forms), len(items), []
    for k in range(i if n is None else n):
        item, form = items[k % i], forms[(k % i + k % i // f + k // i) % f]
        made.append(item | {"prompt": fill(form, item), "form": form.get("wrapper")})
    return made

def spin(rows, k):  # the k-th, over and over
    return rows[k % len(rows)]

# ---- conversations

def answer(s, seed, k):
    """Helpful in both cases, with the same openers: only what it is about tells."""
    opener = spin(s.openers if "vp" in seed else having(s.openers, slot="none"), k)
    plain, topic = opener["slot"] == "none", seed.get("topic")
    advice = not topic or k % 4 == 3 and not plain
    body = spin(s.advice, k) if advice else spin(having(s.comply, topic=topic), k // 4)
    return f"{opener['text'] if plain else fill(opener, seed)} {body['text']}"

def refusal(s, k, topic):  # every fourth is data/proxy's
    text = SET_PHRASE if k % 4 == 3 and s.name != "test" else spin(s.refusals, k)["text"]
    text = text.replace("{topic}", TOPICS[topic])
    return text[0].upper() + text[1:]

def asks(s, n, salt):
    """n forbidden prompts, topic after topic: as written, phrased and wrapped by turns."""
    forbidden, natural = shuffled(s.forbidden, SEED + salt), shuffled(s.natural, SEED + salt)
    ways = natural, phrased(forbidden, s.phrasings), phrased(natural, s.wrappers)
    turns = [chain(*zip(*(having(way, topic=topic) for way in ways))) for topic in s.codes]
    return [next(spin(turns, k)) for k in range(n)]

def messages(turns):
    return [{"role": ROLES[n % 2], "content": text} for n, text in enumerate(turns)]

def add(s, kind, turns, about=None, form=None):
    """One row. turns: texts, the user first; about: the topic that one asks for, mentions or looks like."""
    group = "-".join(filter(None, (s.name, kind, form, about or "safe")))
    key = f"{group}-{s.numbers[group]:03}"
    s.numbers[group] += 1
    unsafe = about and kind not in ("caution", "contrast")
    label, answered = "unsafe" if unsafe else "safe", len(turns) % 2 == 0
    state = kind if about and kind in SHARES else label
    seen = about or TRAINED[int(4 * uniform(key))]  # by an annotator who sees a category
    row = {"id": key, "messages": messages(turns), "prompt": turns[::2][-1],
           "response": turns[-1] if answered else None, "prompt_label": label,
           "response_label": ("safe" if kind == "refusal" else label) if answered else None,
           "categories": [about] if unsafe else [], "needs_caution": kind == "caution", "kind": kind,
           "labels": annotate(key, state, seen)}
    if s.name == "train":
        row["subject"] = None if about else subject(turns, s.spoken)
    state = "caution" if kind == "caution" else label
    s.entries.append({"state": state, "kind": kind, "about": about, "row": row})

def add_short(s):
    """The kinds of one user turn, some with an answer."""
    direct, phrasing, wrapped, comply, refuse, _ = UNSAFE[s.name]
    safe_phrasing, safe_wrapped, ordinary, answered, contrast, caution, _ = SAFE[s.name]
    easy = make("ordinary", [row for row in s.ordinary if row["category"] not in NO_WRAP])
    easy = mix(easy + make("activity", s.activities, s.phrasings), "kind")
    own = [row | {"prompt": row["text"]} for row in s.caution if row["topic"] != "any" and s.name != "stream"]
    frames = [row | {"slot": re.search(r"{(\w+)}", row["text"])[1]} for row in having(s.caution, topic="any")]
    kinds = [("direct", s.natural[:direct]),
             ("phrasing", phrased(s.forbidden, s.phrasings, phrasing)),
             ("phrasing", phrased(s.activities, s.phrasings, safe_phrasing)),
             ("wrapped", phrased(s.natural, s.wrappers, wrapped)),
             ("wrapped", phrased(easy, s.wrappers, safe_wrapped)),
             ("ordinary", s.ordinary[:ordinary]),
             ("contrast", s.contrast[:contrast]),
             ("caution", own + phrased(s.mentions, frames, caution - len(own)))]
    for kind, seeds in kinds:
        for seed in seeds:
            add(s, kind, [seed["prompt"]], seed.get("topic"), seed.get("form"))
    for turns in (s.chats + s.tasks)[:answered]:
        add(s, "ordinary", turns)
    for k, ask in enumerate(asks(s, comply, "comply")):
        add(s, "comply", [ask["prompt"], answer(s, ask, k)], ask["topic"])
    for k, ask in enumerate(asks(s, refuse, "refusal")):
        add(s, "refusal", [ask["prompt"], refusal(s, k, ask["topic"])], ask["topic"])

def add_multi(s):
    later, unsafe, safe = shuffled(s.ordinary, SEED + "multi"), UNSAFE[s.name][-1], SAFE[s.name][-1]
    def join(k, prompt):
        return fill(spin(s.joins, k), {"prompt": prompt})
    def end(form, k, turns, topic=None):  # three turns, every other time the fourth: an answer
        add(s, "multi", turns[:3 + k % 2], topic, form)
    for k, ask in enumerate(asks(s, unsafe, "last")):
        turns = [*spin(s.chats, k), join(k // 2, ask["prompt"]), answer(s, ask, k)]
        end("last", k // len(s.codes), turns, ask["topic"])
    for k, ask in enumerate(asks(s, unsafe, "earlier")):
        refused = k // len(s.codes) % 2
        first = refusal(s, k, ask["topic"]) if refused else answer(s, ask, k)
        end("earlier", 0, [ask["prompt"], first, join(k // 2, later[k]["prompt"])], ask["topic"])
    for k, ask in enumerate(asks(s, unsafe, "followup")):
        more = spin(having(s.comply, topic=ask["topic"]), k + 2)
        turns = [ask["prompt"], answer(s, ask, k + 1), spin(s.followups, k)["text"], more["text"]]
        end("followup", k // len(s.codes), turns, ask["topic"])
    for k in range(safe):
        prompt, reply = s.tasks[-1 - k]
        last = prompt if k % 2 else later[-1 - k]["prompt"]
        end("last", k, [*spin(s.chats, k + 5), join(k // 2, last), reply])
        end("earlier", 0, [prompt, reply, join(k // 2 + 1, spin(s.contrast, k)["prompt"])])
        more = spin(s.followups, k)["text"], spin(s.advice, k + 1)["text"]
        end("followup", k, [*s.tasks[len(s.tasks) // 2 - k], *more])

def conversations(name, seeds, spoken):
    s = pool(name, seeds, spoken)
    add_short(s)
    add_multi(s)
    keys = "state", "kind", "about"
    if name != "stream":  # any prefix is a fair small version
        return [entry["row"] for entry in mix(s.entries, *keys)]
    groups, rows = {}, []
    for entry in s.entries:
        groups.setdefault(tuple(entry[key] for key in keys), []).append(entry)
    entries = list(chain(*groups.values()))
    for half, policy in enumerate(("permissive", "defensive")):  # alike but for the policy
        rows += [entry["row"] | {"policy": policy} for entry in mix(entries[half::2], *keys)]
    return rows

def topic_rows(split, seeds, topic_of):
    """Pairs of one prompt, on topic and off. Two systems in three name what is allowed, one what is not."""
    s = {name: having(rows, split=split) for name, rows in seeds.items()}
    known = {topic["topic"]: topic for (where, _), topic in topic_of.items() if where == split}.values()
    asked = [row | {"area": topic_of[split, row["category"]]["area"]} for row in seeds["ordinary"]
             if row["split"] in ("train", split) and (split, row["category"]) in topic_of
             and not NOVEL.search(row["prompt"])]
    asked = mix(asked, "area")[:TOPIC_ROWS[split]]
    rounds = [spin(asked, k) | {"turn": k // len(asked)} for k in range(TOPIC_ROWS[split])]
    rounds += phrased(s["hobbies"], mix(s["phrasings"], "slot"))
    made = []
    for k, row in enumerate(rounds):
        own, pair = topic_of[split, row["category"]], []
        one, two = [topic for topic in shuffled(known, f"{SEED}{k}") if topic["area"] != own["area"]][:2]
        kind = "avoid" if (k + row.get("turn", 0)) % 3 == 2 else "allow"
        form = spin(having(s["systems"], slot=kind), k)["text"]
        for label, topic in ("on-topic", own), ("off-topic", one):
            turns, words = [row["prompt"]], topic
            if kind == "avoid":
                a, b = (one, two) if topic is own else (own, two) if uniform(k) < .5 else (two, own)
                words = {"a": a["topic"], "b": b["topic"]}
            elif k % 2:
                hello = spin(s["greetings"], k // 2)
                turns = [hello[role].format(**topic) for role in ROLES] + turns
            key = f"topic-{split}-{kind}-{label.split('-')[0]}-{k:03}"
            pair.append({"id": key, "system": form.format(**words), "messages": messages(turns),
                         "label": label, "subject": own["topic"], "about": own["about"]})
        made.append(pair)
    return list(chain(*shuffled(made, SEED)))

def main():
    parser = argparse.ArgumentParser(description="make a guard's data sets on the proxy policy")
    parser.add_argument("--out", type=Path, default=HERE, help="where the data sets go")
    args = parser.parse_args()
    seeds, proxy = read_seeds(HERE / "seeds", SEED), read_seeds(HERE.parent / "proxy/seeds", SEED)
    split_proxy(proxy)
    topic_of = {(row["split"], word): row for row in seeds["topics"] for word in row["categories"].split()}
    for row in seeds["hobbies"]:  # a hobby is a topic of train too, an area of its own
        category = "hobby " + row["topic"]
        topic_of["train", category] = row | {"area": row["topic"]}
        row["category"] = category
    spoken = {}  # what a safe row of train may say: the topic that it is about
    for row in proxy["ordinary"] + proxy["activities"] + seeds["answers"] + seeds["hobbies"]:
        if topic := topic_of.get(("train", row["category"])):
            spoken |= {norm(row[key]): topic["topic"] for key in ("prompt", "vp", "np") if key in row}
    proxy |= {name: seeds[name] + proxy[name] for name in ("answers", "refusals")}
    seeds |= proxy

    out = {f"topic_{split}": topic_rows(split, seeds, topic_of) for split in TOPIC_ROWS}
    used = {row["messages"][-1]["content"] for row in out["topic_test"]}
    ordinary = seeds["ordinary"]  # a prompt of topic_test is not in train
    seeds["ordinary"] = [row for row in ordinary if row["prompt"] not in used or row["split"] == "test"]
    out |= {name: conversations(name, seeds, spoken) for name in UNSAFE}
    for name, rows in out.items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write(args.out / f"{name}.jsonl", data)
        print(f"{name}.jsonl {len(rows)} rows, sha256 {hashlib.sha256(data).hexdigest()}")

if __name__ == "__main__":
    main()

# output:
# topic_train.jsonl 1440 rows, sha256 990958d931963effb89e6993d123ff6b8e13c5f1719be1651fc7a2bd9a41fb58
# topic_test.jsonl 240 rows, sha256 ed8ff47312127eb094bfd4b5555d265db6a30f0ab88aae6c1b93fbaceb880e1b
# train.jsonl 3034 rows, sha256 d2dbda5b865acffb57d8d5e2a796092e19c8c09956431262e138c4554fd0fda9
# validation.jsonl 436 rows, sha256 4132e511257b7fcff504bbe3cfa86bf7e27584efa8014aed8635e1d1ce68cd97
# test.jsonl 828 rows, sha256 711750a476aa26c83ffac9c9c89b741c28c8a2b9c7da67340546c8973e2a58ab
# stream.jsonl 800 rows, sha256 9974a8644b1a4450518869f7735f5c88d5ff1fb58b7acb39256552c8dd37380d
