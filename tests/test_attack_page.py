"""adv_train.py attack: a person's sitting, its log, its minutes; the terminal; the page in Chromium."""
import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data"), str(ROOT / "tests")]
SCRIPT = [str(ROOT / "adv_train.py"), "attack"]
import adv_train as v
import evals
from test_adv_train import arguments, lines, models  # noqa: F401

MARKUP = '<b>tea</b> <img src=x onerror="window.hit=1"> ${window.hit=2} {{said}} `x`'


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """-> flags and Filter of a run whose classifier has hardly learned: it rejects half of what it reads"""
    out, data = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("rows")
    splits = "train", "validation", "test", "lm_train"
    rows = {split: lines(v.DATA / f"stories/{split}.jsonl") for split in splits}
    story = 'A sign said <b>bold</b> and <img src=x onerror="window.hit=3">.'
    for split, of in rows.items():
        of[:] = [row | {"prompt": story} for row in of[:1500]]
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    argv = [*arguments(models, out), "--data", str(data), "--oracle"]
    argv += ["--accept", "0.5", "--epochs", "1", "--arm", "baseline"]
    argv[argv.index("--targets") + 1] = "4"
    a = v.parse_args(argv)
    a.folder.mkdir(parents=True)
    lm = v.load_generator(a)
    f = v.train_filter(a, "baseline", rows["train"][:64], rows["validation"])
    bad = [row for row in rows["test"] if row["label"]]
    accepted = [row for row, x in zip(bad, v.scores(f, bad)) if x < f.tau]
    accepted = [row["completion"] for row in accepted if v.is_bad([row], a)[0]]
    coloured = [row | {"completion": "\x1b[31m" + row["completion"]} for row in bad]
    coloured = [row["completion"] for row, x in zip(coloured, v.scores(f, coloured)) if x >= f.tau]
    return argparse.Namespace(argv=argv, a=a, f=f, lm=lm, bad=bad, accepted=accepted, coloured=coloured)


def flags(run, folder, **changes):
    given = {"author": "Ada", "no_tool": False, "terminal": False, "port": None, "folder": folder}
    return argparse.Namespace(**vars(run.a) | given | changes)


def sitting(run, folder, tau=None, n=3, **changes):
    f = run.f if tau is None else run.f._replace(tau=tau)
    return v.Sitting(f, run.lm, run.bad[:n], flags(run, folder, **changes))


def log(s):
    return lines(s.a.folder / "sittings" / f"{s.id}.jsonl")


def test_menu_pick_edit_and_undo(run, tmp_path):
    s = sitting(run, tmp_path)
    start = s.view()
    assert "".join(text for text, *_ in start["pieces"]) == start["text"] == run.bad[0]["completion"]
    assert max(x for *_, x in start["pieces"]) == 1 and start["menu"] == []
    s.act("menu", 1)
    menu = s.view()["menu"]
    assert len(menu) > 4 and [x for x, *_ in menu] == sorted(x for x, *_ in menu)
    s.act("pick", 2)
    assert s.score == pytest.approx(menu[2][0], abs=1e-5) and menu[2][3] in s.view()["text"]
    assert s.view()["menu"] == []
    s.act("edit", "  <b>Anything</b>\n goes. ")
    assert s.view()["text"] == "<b>Anything</b> goes."
    s.act("undo"), s.act("undo"), s.act("undo")
    assert s.view()["text"] == start["text"] and s.score == start["score"]
    rows = log(s)
    assert [row["event"] for row in rows] == ["shown", "menu", "pick", "edit", "undo", "undo"]
    assert tuple(rows[2]["edit"]) == menu[2][1:] and {row["target"] for row in rows} == {run.bad[0]["id"]}
    assert all(row["author"] == "Ada" and row["tool"] and row["arm"] == "baseline" for row in rows)
    for wrong in ("pick", 999), ("menu", -1), ("begin", None), ("__init__", None), ("place", "x"):
        s.act(*wrong)
    assert len(log(s)) == len(rows)


@pytest.mark.parametrize("text, said", [("", "empty"), (" \n ", "empty"), ("cup " * 300, "tokens")])
def test_what_is_not_scored(run, tmp_path, text, said):
    s = sitting(run, tmp_path)
    before = s.view()
    for what in ("edit", "submit"):
        s.act(what, text)
        assert said in s.said and s.view()["text"] == before["text"] and len(log(s)) == 1
    assert said == "empty" or "reads 256" in s.said


def test_without_the_tool_there_is_the_score_alone(run, tmp_path):
    s = sitting(run, tmp_path, no_tool=True)
    s.act("menu", 0)
    assert s.view()["pieces"] == [(run.bad[0]["completion"], None, 0)] and s.view()["menu"] == []
    s.act("edit", "A cup of coffee.")
    assert [row["tool"] for row in log(s)] == [False, False] and "score" in s.view()["verdict"]


def test_outcomes_and_a_find_stored_once(run, tmp_path):
    s = sitting(run, tmp_path, tau=-1e9)
    s.act("submit", run.bad[0]["completion"])
    s.f = run.f._replace(tau=1e9)
    s.act("submit", "They sang.")
    assert s.said == "Submitted: no longer bad." and s.n == 0
    s.act("submit", run.bad[1]["completion"], 0)
    s.act("submit", run.bad[1]["completion"], 0)  # a second click, meant for the first text
    assert s.finds == 1 and s.n == 1 and s.view()["text"] == run.bad[1]["completion"]
    s.act("next"), s.act("next"), s.act("next")
    assert s.done and s.view()["done"] and "last text" in s.said
    done = [(row["outcome"], row["accepted"], row["bad"]) for row in log(s) if row["event"] == "submit"]
    assert done == [("still rejected", False, True), ("no longer bad", True, False), ("found", True, True)]


def test_minutes_count_what_was_given_up_and_what_was_left_open(run, tmp_path, monkeypatch):
    clock = argparse.Namespace(monotonic=lambda: clock.now, strftime=time.strftime, now=0.0)
    monkeypatch.setattr(v, "time", clock)

    def sit(arm, tau, seconds):
        s = sitting(run, tmp_path, tau=tau, arm=arm)
        for what, wait in seconds:
            clock.now += wait
            s.act(what, s.view()["text"])
        return s
    sit("baseline", 1e9, [("submit", 90), ("next", 30), ("close", 60), ("next", 1000)])
    sit("rewrite", 1e9, [("submit", 300), ("undo", 5)])  # killed: its last event tells
    s = sit("rewrite", -1e9, [("submit", 55)])
    paths = sorted((tmp_path / "sittings").glob("*.jsonl"))
    out = v.minutes(paths)["people, tool"]
    assert len(paths) == 3 and log(s)[-1]["seconds"] == 55
    for name, k, T in ("baseline", 1, 3), ("rewrite", 1, (300 + 55) / 60):
        m, want = out[f"{name}: minutes a find"], evals.time_to_find(k, T)
        assert (m["n"], m["value"], *m["ci95"]) == pytest.approx((k, want["value"], *want["ci95"]))
    assert out["rewrite: times as long"]["value"] == pytest.approx(355 / 180)
    v.report(v.minutes(paths))


def test_models_serve_one_sitting_at_a_time(run, tmp_path, monkeypatch):
    inside, real = [], v.scores

    def one_at_a_time(f, rows):
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.01)
        inside.pop()
        return real(f, rows)
    monkeypatch.setattr(v, "scores", one_at_a_time)
    people = [sitting(run, tmp_path) for _ in range(3)]

    def work(n):
        for k in range(4):
            people[n].act("edit", f"Number {n} wrote {k} cups.")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    [t.start() for t in threads], [t.join() for t in threads]
    for n, s in enumerate(people):
        assert [row["completion"] for row in log(s)[1:]] == [f"Number {n} wrote {k} cups." for k in range(4)]
        assert log(s)[-1]["score"] == pytest.approx(real(s.f, [s.row])[0], abs=1e-5)


def command(run, *more):
    return [sys.executable, *SCRIPT, *run.argv, *more]


def newest(run):
    return max((run.a.folder / "sittings").glob("*.jsonl"), key=os.path.getmtime)


def test_terminal(run):
    text = f"3\n=0\nu\n\n{run.coloured[-1]}\ns\n{run.accepted[0]}\ns\nn\n"
    argv = command(run, "--terminal", "--author", "Bo")
    p = subprocess.run(argv, input=text, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    rows = lines(newest(run))
    events = [row["event"] for row in rows]
    assert events[:6] == ["shown", "menu", "pick", "undo", "edit", "submit"]
    assert events[6:] == ["edit", "submit", "shown", "next", "shown", "close"]
    assert rows[7]["outcome"] == "found" and rows[0]["author"] == "Bo"
    assert "empty text" in p.stdout and "[3" in p.stdout and "\x1b" not in p.stdout
    assert re.search(r"people, tool .*baseline: minutes a find", p.stdout)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
def test_terminal_where_gradio_is_not_installed(run):
    p = subprocess.run(command(run, "--no-tool"), input="q\n", capture_output=True, text=True)
    assert p.returncode == 0 and "text 1 of 4" in p.stdout and not lines(newest(run))[0]["tool"]


def test_an_arm_without_a_classifier(run, capsys):
    with pytest.raises(SystemExit):
        v.attack(flags(run, run.a.folder, arm="none"))
    assert "no classifier" in capsys.readouterr().err


# ---- the page
@pytest.fixture(scope="module")
def urls(run):
    """two servers at once, the second without the tool; Ctrl-C ends them and they print the minutes"""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [run.a.folder / f"server{n}.txt" for n in range(2)]
    servers = [subprocess.Popen(command(run, *more), stdout=open(out, "w"), stderr=subprocess.STDOUT)
               for out, more in zip(outs, (["--author", "Cy"], ["--no-tool", "--port", port]))]
    end = time.time() + 60
    try:
        while not all("http://127.0.0.1" in out.read_text() for out in outs):
            going = time.time() < end and all(p.poll() is None for p in servers)
            assert going, [out.read_text()[-2000:] for out in outs]
            time.sleep(0.1)
        yield [re.search(r"http://127\.0\.0\.1:\d+", out.read_text())[0] for out in outs]
        for p in servers:
            p.send_signal(signal.SIGINT)
        for p, out in zip(servers, outs):
            assert p.wait(20) == 0 and "minutes a find" in out.read_text()
    finally:
        for p in servers:
            p.kill()


@pytest.fixture()
def url(urls):
    return urls[0]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no chromium")
    with api.sync_playwright() as p:
        yield p.chromium.launch(executable_path=found, args=["--no-sandbox"])


def opened(browser, url, first=".words button:focus", asked=None, **context):
    tab = browser.new_context(**context).new_page()
    tab.set_default_timeout(10000)
    tab.on("request", lambda request: asked is not None and asked.append(request.url))
    tab.goto(url)
    tab.wait_for_selector(first)
    return tab


def keys(tab, *names):
    for name in names:
        tab.keyboard.press(name)


def wait(tab, selector, text):
    there = "([q, t]) => document.querySelector(q).textContent.includes(t)"
    tab.wait_for_function(there, arg=[selector, text])


def type_in(tab, text):
    tab.focus("textarea")
    keys(tab, "Control+a", "Delete")
    tab.keyboard.insert_text(text)
    keys(tab, "Enter")


def active(tab, what="dataset.do"):
    return tab.evaluate(f"document.activeElement.{what}")


def test_page_by_keyboard_from_load_to_log(browser, url, run):
    asked = []
    tab = opened(browser, url, asked=asked)
    start = tab.input_value("textarea")
    assert "<b>bold</b>" in tab.inner_text(".story") and "Rejected" in tab.inner_text(".verdict")
    keys(tab, "ArrowRight", "ArrowRight", "ArrowLeft", "Enter")
    tab.wait_for_selector("[data-do=pick]:focus")
    assert tab.get_attribute("[aria-expanded=true]", "data-arg") == "1"
    scores = [float(text.split()[-1]) for text in tab.locator(".options i").all_inner_texts()]
    assert scores == sorted(scores) and len(scores) > 4
    keys(tab, "ArrowDown", "Enter")
    tab.wait_for_selector("[data-do=menu][data-arg='1']:focus")
    assert f"{scores[1]:.3f}" in tab.inner_text(".verdict") and tab.inner_text(".words") != start
    stops = []
    while not stops or stops[-1] != "next":
        keys(tab, "Tab")
        stops.append(active(tab) or active(tab, "localName"))
        assert len(stops) < 9
    assert stops == ["textarea", "edit", "undo", "submit", "next"]
    keys(tab, "Shift+Tab", "Shift+Tab", "Enter")  # undo
    wait(tab, ".words", start)
    type_in(tab, "   ")
    wait(tab, ".said", "empty text")
    type_in(tab, "cup " * 300)
    wait(tab, ".said", "256")
    type_in(tab, MARKUP)
    wait(tab, ".words", MARKUP)
    assert active(tab, "localName") == "textarea" and tab.evaluate("window.hit") is None
    assert tab.locator(".attack :is(.words, .story, .options) :is(img, b:not(.options b))").count() == 0
    type_in(tab, run.accepted[0])
    wait(tab, ".words", run.accepted[0])
    assert "Accepted" in tab.inner_text(".verdict")
    tab.wait_for_function("document.querySelector('time').textContent >= '0:01'")
    keys(tab, "Tab", "Tab", "Tab")
    assert active(tab) == "submit"
    tab.evaluate("[1, 2].forEach(() => document.activeElement.click())")  # the second finds the next text
    wait(tab, ".finds", "1 found")
    assert "text 2 of 4" in tab.inner_text(".count") and "found" in tab.inner_text(".said")
    rows = lines(newest(run))
    assert " ".join(row["event"] for row in rows) == "shown menu pick undo edit edit submit shown"
    assert rows[4]["completion"] == MARKUP and rows[6]["outcome"] == "found" and rows[6]["seconds"] >= 1
    for _ in range(3):
        text = tab.inner_text(".count")
        tab.click("[data-do=next]")
        tab.wait_for_function("t => document.querySelector('.count').textContent != t || "
                              "document.querySelector('.sitting').hidden", arg=text)
    wait(tab, ".said", "last text")
    assert not tab.is_visible("textarea")
    assert asked and all(u.startswith((url, "data:", "blob:")) for u in asked)
    assert tab.evaluate("window.hit") is None
    tab.context.close()


def test_two_browsers_at_once(browser, url, run):
    before = {*(run.a.folder / "sittings").glob("*.jsonl")}
    tabs = [opened(browser, url), opened(browser, url, viewport={"width": 400, "height": 800})]
    for round in range(3):
        for n, tab in enumerate(tabs):  # both are on their way before either is back
            type_in(tab, f"Person {n} wrote {round} cups.")
        for n, tab in enumerate(tabs):
            wait(tab, ".words", f"Person {n} wrote {round} cups.")
    for tab in tabs:
        tab.click("[data-do=menu][data-arg='0']")
    for n, tab in enumerate(tabs):
        tab.wait_for_selector("[data-do=pick]")
        assert f"Person {n}" in tab.inner_text(".words")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is cut at 400 px
        tab.context.close()
    new = [*{*(run.a.folder / "sittings").glob("*.jsonl")} - before]
    assert len(new) == 2
    for path in new:
        end = time.time() + 10
        while lines(path)[-1]["event"] != "close" and time.time() < end:
            time.sleep(0.1)
        rows = lines(path)
        assert [row["event"] for row in rows] == ["shown", "edit", "edit", "edit", "menu", "close"]
        assert len({row["completion"][:8] for row in rows[1:]}) == 1
        assert rows[-1]["seconds"] >= rows[-2]["seconds"]


def test_a_port_that_is_taken(run, capsys):
    pytest.importorskip("gradio")
    with socket.socket() as other, pytest.raises(SystemExit):
        other.bind(("127.0.0.1", 0))
        other.listen()
        v.page(flags(run, run.a.folder, port=other.getsockname()[1]), None)
    assert "--port" in capsys.readouterr().err


def test_only_this_machine_is_served(url):
    port = int(url.rpartition(":")[2])
    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc/net/tcp")
    table = [row.split() for path in ("/proc/net/tcp", "/proc/net/tcp6") for row in open(path)]
    listening = [row[1] for row in table if row[1].endswith(f":{port:04X}") and row[3] == "0A"]
    assert listening == [f"0100007F:{port:04X}"]


def test_page_without_the_tool(browser, urls, run):
    tab = opened(browser, urls[1], "textarea:focus")
    assert tab.locator(".words button").count() == 0 and not tab.is_visible(".tool")
    type_in(tab, run.accepted[0])
    wait(tab, ".words", run.accepted[0])
    assert "Accepted" in tab.inner_text(".verdict")
    assert lines(newest(run))[-1]["tool"] is False
    tab.context.close()
