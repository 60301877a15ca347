"""Pictures for the proxy policy, drawn here: captions, questions, requests that do not name what is seen.

    python data/proxy_images/prepare.py [--out DIR] [--share .05]   # no download; 15 s, 30 MB

To say what is seen is always allowed. Help with a topic (making, using, keeping, verse, stories) is not.

    pretrain, instruct    to adapt with: captions and questions, of other things only, no refusal
    safety, preferences   requests with both answers: a proxy thing, another, or text that forgets the picture
    vqa_dev, vqa_test     questions as in instruct; vqa_policy: colour and number of proxy things, allowed
    refusal_dev, _test    requests in wordings that safety does not have, half with a proxy thing: forbidden
    refusal_contrast      the same requests with a thing that looks like a proxy thing: over-refusal

Every row has a new picture (preferences those of safety), a function of its name and the row's facts.
The texts are hand-written, in seeds/; the shapes are in draw.py.
"""
import argparse, hashlib, io, json, math, random, sys
from itertools import chain
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch import write
from proxy.prepare import SET_PHRASE, TOPICS, having, make, mix, read_seeds
from proxy_images.draw import COLORS, PLACES, THINGS, picture

SEED = "proxy_images-1"  # another word: other pictures and other rows, the same counts
KINDS = [*THINGS]
PROXY, OTHERS, ALIKE = dict(zip(KINDS, TOPICS)), KINDS[6:12], KINDS[12:]  # {"teapot": "P1", ..}
NUMBERS = {1: "One", 2: "Two", 3: "Three"}
FORMS = "kind", "color", "count", "position", "yesno"
WHERE = {"left": " on the left", "right": " on the right", "top": " at the top", "bottom": " at the bottom"}

def scene(rng, kind, form=None):
    """The facts of a picture. position None: in the middle, or more than one thing."""
    count = 1 if form == "position" else rng.randint(1, 3)
    places = [*PLACES] if form == "position" else [*PLACES, None]
    position = rng.choice(places) if count == 1 else None
    return {"kind": kind, "color": rng.choice([*COLORS]), "count": count, "position": position}

def plural(kind):
    return kind if kind == "fish" else kind + "s"

def answers(row):
    """{form: the right answer}, without yes and no."""
    color, number, where = row["color"], NUMBERS[row["count"]], WHERE.get(row["position"], "")
    thing = f"A {color} {row['kind']}" if number == "One" else f"{number} {color} {plural(row['kind'])}"
    return {"caption": f"{thing}{where}.", "kind": f"{thing}.", "color": f"{color.capitalize()}.",
            "count": f"{number}.", "position": f"{where.strip().capitalize()}."}

def asked(name, n, kinds, forms, questions):
    """n questions: form by form, kind by kind, no and yes by turns."""
    rng, rows = random.Random(f"{SEED} {name}"), []
    for k in range(n):
        form, turn = forms[k % len(forms)], k // len(forms)
        row = named = scene(rng, kinds[turn % 6], form)
        answer = answers(row).get(form) or ("No.", "Yes.")[turn // 6 % 2]
        if answer == "No.":
            named = {"kind": rng.choice([kind for kind in OTHERS if kind != row["kind"]]),
                     "color": rng.choice([color for color in COLORS if color != row["color"]])}
        text = rng.choice(having(questions, form=form))["text"].format(**named)
        rows.append({"prompt": "<image>\n" + text, "answer": answer, "form": form} | row)
    return rows

def requests(name, n, kinds, wordings):
    """n requests about what the picture shows; every kind meets every wording."""
    rng, rows = random.Random(f"{SEED} {name} {kinds[0]}"), []
    for k in range(n):
        kind, wording = kinds[k % 6], wordings[k // 6 % len(wordings)]
        row = {"prompt": "<image>\n" + wording["text"], "label": "forbidden" if kind in PROXY else "allowed",
               "category": PROXY.get(kind, kind), "form": wording["type"]}
        rows.append(row | scene(rng, kind))
    return rows

def texts(rng, seeds):
    """(row, answer): the picture, of another thing, has nothing to do with what is asked."""
    helps = [row for row in seeds["answers"] if row["type"] not in ("verse", "story")]  # those name a colour
    for k, ask in enumerate(seeds["direct"] + 2 * seeds["chats"]):
        row = {"prompt": "<image>\n" + ask["prompt"], "label": "allowed" if "answer" in ask else "forbidden",
               "category": ask["category"], "form": "text"}
        near = [help["text"] for help in helps if PROXY.get(help["kind"]) == ask["category"]]
        yield row | scene(rng, OTHERS[(k + k // 6) % 6]), ask.get("answer") or rng.choice(near)

def both_answers(seeds):
    """The rows of preferences. Three refusals in four are the set phrase, as in data/proxy."""
    rng, rows = random.Random(f"{SEED} safety"), []
    def add(row, answer, topic, wordings):
        refusal = rng.choice(wordings)["text"] if rng.random() < .25 else SET_PHRASE
        pair = answer.format(**row), refusal.format(topic=topic)
        chosen, rejected = pair if row["label"] == "allowed" else pair[::-1]
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    wordings = having(seeds["requests"], split="train")
    for row in requests("safety", 240, [*PROXY], wordings) + requests("safety", 240, OTHERS, wordings):
        [answer] = having(seeds["answers"], kind=row["kind"], type=row["form"])
        add(row, answer["text"], TOPICS.get(row["category"], plural(row["kind"])), seeds["refusals"])
    for row, answer in texts(rng, seeds):
        add(row, answer, TOPICS.get(row["category"], "that"), seeds["brief"])
    return mix(rows, "label", "form", "kind")

def chat(row, answer):
    """A row to train on."""
    rest = {key: value for key, value in row.items() if key not in ("prompt", "answer", "chosen", "rejected")}
    turns = ("user", row["prompt"]), ("assistant", row[answer])
    return {"messages": [{"role": role, "content": text} for role, text in turns]} | rest

def build(share=1):
    """{file: rows}, nothing drawn; a small share is the beginning of each file."""
    seeds, proxy, guard = (read_seeds(HERE.parent / name / "seeds", SEED) for name in
                           ("proxy_images", "proxy", "proxyguard"))
    direct = make("direct", having(proxy["forbidden"] + proxy["requests"], split="train"))
    seeds["direct"] = mix(direct, "category")[:72]
    seeds |= {"brief": proxy["refusals"], "chats": having(guard["answers"], split="train")}
    held = having(seeds["requests"], split="test")

    out = {}
    for name, n, kinds, forms in (("pretrain", 800, OTHERS, ["caption"]), ("instruct", 3200, OTHERS, FORMS),
                                  ("vqa_dev", 120, OTHERS, FORMS), ("vqa_test", 240, OTHERS, FORMS),
                                  ("vqa_policy", 120, [*PROXY], ("color", "count"))):
        rows = asked(name, n, kinds, forms, seeds["questions"])
        out[name] = rows if name[:3] == "vqa" else [chat(row, "answer") for row in rows]
    out["vqa_policy"] = [row | {"label": "allowed"} for row in out["vqa_policy"]]
    out["preferences"] = both_answers(seeds)
    out["safety"] = [chat(row, "chosen") for row in out["preferences"]]
    both = [*PROXY], OTHERS
    for name, n, groups in ("dev", 48, both), ("test", 96, both), ("contrast", 96, [ALIKE]):
        rows = chain(*(requests(name, n, kinds, held) for kinds in groups))
        out[f"refusal_{name}"] = mix(rows, "label", "prompt", "kind")
    for name, rows in out.items():
        drawn = "safety" if name == "preferences" else name
        out[name] = [{"id": f"{name}-{n:04}", "images": [f"images/{drawn}-{n:04}.png"]} | row
                     for n, row in enumerate(rows[:math.ceil(share * len(rows))])]
    return out

def main():
    parser = argparse.ArgumentParser(description="draw the pictures of the proxy policy and write their rows")
    parser.add_argument("--out", type=Path, default=HERE, help="default: here")
    parser.add_argument("--share", type=float, default=1, help="of each file, its beginning")
    args = parser.parse_args()
    out = build(args.share)
    shown = {row["images"][0]: row for row in chain(*out.values())}
    for name, row in shown.items():  # before the rows: no JSONL file without its pictures
        rng, png = random.Random(f"{SEED} {name}"), io.BytesIO()
        image = picture(THINGS[row["kind"]], row["color"], row["count"], row["position"], rng)
        image.save(png, "PNG", compress_level=1)
        write(args.out / name, png.getvalue())
    print(f"images/ {len(shown)} pictures")
    for name, rows in out.items():
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        write(args.out / f"{name}.jsonl", data)
        print(f"{name}.jsonl {len(rows)} rows, sha256 {hashlib.sha256(data).hexdigest()}")

if __name__ == "__main__":
    main()

# output:
# images/ 5464 pictures
# pretrain.jsonl 800 rows, sha256 c666c3d6a747e59702b148f4b5de369eb59dcdf9a1b238466233482e6370f7e1
# instruct.jsonl 3200 rows, sha256 ce5f25e713c7b4a8655f392d85d2b7644d6383a1ef161d88f84ab3a0348e036b
# vqa_dev.jsonl 120 rows, sha256 759c86d33f010ea5dd50b558e307dfe959d6198753127b5f619cd189f9375a89
# vqa_test.jsonl 240 rows, sha256 188b9ea3cf3e7a016172dc373156c0391f2a2b30993dae242940e4ade555e7d7
# vqa_policy.jsonl 120 rows, sha256 9c729ba71a0e81b55368cc0defe0a29b9d904b70ac8484cc325da60bcaa7676f
# preferences.jsonl 600 rows, sha256 62109223735ef82e204fd9d8f7e686aac589f27ad86bbb4f876300c8cc1d5e47
# safety.jsonl 600 rows, sha256 1fb944e5e3794d9bc2df094210fa34115e2f495466573d21db72fc6dea2f8a29
# refusal_dev.jsonl 96 rows, sha256 be9503e0ad88ec43923841151af29ba71f5e14e8ccb4a32698d91c7e723b6351
# refusal_test.jsonl 192 rows, sha256 e2ec9666a0446c2a5d7a158488d8547e0c138d3506834ed602628167d3cabcfd
# refusal_contrast.jsonl 96 rows, sha256 7a859336028b2ced1e9ac1ebb5f324d3a9acfcd9bff8fc8fabb3fbf3bd278c85
