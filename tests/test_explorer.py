"""data/costs/explorer.py and its page: the model in it is Python's, it asks no network."""

import html
import json
import math
import re
import shutil
import subprocess
from fractions import Fraction

import pytest

from data.costs import curves
from data.costs.advise import Market, find_split, find_turns, judge
from data.costs.budget import make_terms
from data.costs.curves import Curves, Posterior, Run
from data.costs.explorer import DRAWS, make_state, write_page
from data.costs.prices import load_prices
from data.costs.serving import Serving, find_payback
from data.files import UserError
from data.tasks import load_task

PILOT = [("small", 1253, 0, 0.476), ("small", 2153, 0, 0.578), ("small", 5000, 0, 0.674)]
PILOT += [("teacher", 5000, 0, 0.742), ("dist", 5000, 7000, 0.653)]
SERVINGS = [
    Serving("paper/wlp", "student", "NVIDIA A40", 1, 64, Fraction(4, 10_000), 3),
    Serving("paper/wlp", "teacher", "NVIDIA A40", 2, 64, Fraction(3, 100), 1),
]
# What the sliders say: labels, rows, dollars of a label and of a GPU-hour, times the hours, budget.
MARKETS = [
    (5000, 111_000, "0.26", "1.875", 1, 100),
    (5000, 111_000, "0.26", "1.875", 1, 1303),
    (5000, 2000, "0.031", "1.875", 1, 777),
    (700, 111_000, "0.26", "4.11", "0.37", 53),
    (12_345, 50_000, "1.7", "0.9", 3, 2011),
]
NEEDS_NODE = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")


PAGES = {"paper": (1, None), "mini, LLM": (10, (0.71, 100)), "one number of hours": (1, None, 30)}


@pytest.fixture(scope="module", params=PAGES.values(), ids=PAGES)
def page(request, tmp_path_factory):
    """(path of a page, its numbers, the Market that it starts from)."""
    unit, llm, *hours = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "STUDENTS", 8000)
        patch.setattr(curves, "OTHERS", 3)
        posterior = Posterior([Run(*run) for run in PILOT], 0.092, llm, error=0.006)
    terms = make_terms(load_task("wlp"), load_prices())
    terms = terms._replace(teacher_hours={0: hours[0]}) if hours else terms
    market = Market(terms, 5000, 111_000, 11_966, unit, bool(llm))
    found = {"sure": True, "split": {"budget": 300}, "notes": ["one", "two </script>"]}
    servings = [(each, market.terms.usd_per_gpu_hour) for each in SERVINGS]
    servings.append((SERVINGS[0]._replace(gpu=None), Fraction(1, 10)))
    words = ("WLP <b>", posterior, market, found, servings, "python costs.py advise", 2300)
    state = make_state(*words)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    write_page(path, state)
    return path, read_data(path), market


def read_data(path):
    text = re.search(r'<script id="data"[^>]*>(.*?)</script>', path.read_text(), re.DOTALL)[1]
    return json.loads(text)


def read_posterior(data):
    """A Posterior of the draws that lie in the page."""
    posterior = Posterior.__new__(Posterior)
    posterior.draws, posterior.error, posterior.runs = [], data["error"], []
    posterior.most_labels, posterior.most_rows = data["most_labels"], data["most_rows"]
    for row in data["rows"]:
        draw = Curves()
        values = dict(zip(data["columns"], row, strict=True))
        draw.z = [values.pop(f"z{i}") for i in range(5)]
        for name, value in values.items():
            setattr(draw, name, value)
        posterior.draws.append(draw)
    return posterior


PROBE = """
const vm = require("vm"), [page, markets] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const part = name => page.match(new RegExp(`<script id="${name}"[^>]*>([^]*?)</script>`))[1];
const probe = `markets.map(market => {
  const M = {...D.market, ...market};
  return [judge(D, M, M.budget), findTurns(D, M), findSplit(D, M, M.budget), listServing(D, M),
          findFrontier(D, M)];
})`;
const code = `${part("model")}; const D = readDraws(data); ${probe}`;
const answer = vm.runInNewContext(code, {markets, data: JSON.parse(part("data"))});
console.log(JSON.stringify(answer, (key, value) => value === Infinity ? "never" : value));
"""


def run_model(path, markets):
    names = ("labels", "unlabeled", "label_usd", "gpu_usd", "factor", "budget")
    asked = [dict(zip(names, map(float, market), strict=True)) for market in markets]
    done = subprocess.run(
        ["node", "-e", PROBE],
        input=json.dumps([path.read_text(), asked]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same(found, wanted):
    """Equal to 1e-9, in whatever lists and dicts; never is inf."""
    if isinstance(wanted, dict):
        return found.keys() >= wanted.keys() and all(same(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, str) or wanted is None:
        return found == wanted
    return found == "never" if wanted == math.inf else abs(found - wanted) <= 1e-9 * max(1, wanted)


@NEEDS_NODE
def test_the_pages_model_is_pythons(page):
    path, data, market = page
    posterior = read_posterior(data)
    answers, ends = run_model(path, MARKETS), (1 / market.unit, 1e5 / market.unit)
    for (labels, rows, label, hour, factor, budget), answer in zip(MARKETS, answers, strict=True):
        terms = market.terms._replace(
            usd_per_label=Fraction(label), usd_per_gpu_hour=Fraction(hour) * Fraction(factor)
        )
        asked = market._replace(terms=terms, labels=labels, unlabeled=rows)
        asked = asked._replace(most_labels=max(market.most_labels, labels))
        judged, turns, split, serving, frontier = answer
        wanted = judge(posterior, asked, budget)
        assert same(judged, {k: v for k, v in wanted.items() if k != "p_best"}), (judged, wanted)
        assert judged["sure"] == pytest.approx(
            wanted.get("p_best", max(wanted["p"], 1 - wanted["p"]))
        )
        assert same(turns, find_turns(posterior, asked, *ends)), turns
        wanted = find_split(posterior, asked, budget)
        assert same(split, [wanted[key] for key in ("labels", "rows", "score")]), split
        student, teacher = (each.price(Fraction(hour)) for each in SERVINGS)
        cpu = SERVINGS[0].price(Fraction(1, 10))
        assert same([way["usd"] for way in serving[:3]], [student, teacher, cpu])
        build = asked.price_dist(labels)
        spent = min(budget, asked.price_dist(labels, rows))  # 2,000 rows are less than $777
        assert same(serving[1]["paid"], find_payback(spent, student, build, teacher))
        front = [point["score"] for point in frontier if point["front"]]
        assert front == sorted(set(front)) and max(p["score"] for p in frontier) == front[-1]


def test_a_file_that_is_no_page_is_not_overwritten(tmp_path):
    for _ in range(2):  # a page is made anew
        write_page(tmp_path / "page.html", {})
    (tmp_path / "task.json").write_text("{}")
    for place in (tmp_path, tmp_path / "task.json"):
        with pytest.raises(UserError, match="would be overwritten"):
            write_page(place, {})


def test_the_page_is_one_small_file_that_asks_no_network(page):
    path, data, _ = page
    text = path.read_text()
    assert len(text.encode()) <= 100_000 and len(data["rows"]) == DRAWS
    assert "http" not in text and "//" not in re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.M)
    assert not re.search(r"\b(src|href)=|@import|fetch\(|XMLHttp|WebSocket|import\(", text)
    assert text.count("</script>") == 3 and "WLP \\u003cb>" in text
    for word in (
        'aria-live="polite"',
        "prefers-color-scheme: dark",
        "max-width: 48rem",
        'lang="en"',
    ):
        assert word in text
    assert set(re.findall(r'\$\("(\w+)"\)', text)) <= set(re.findall(r'id="(\w+)"', text))


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# Stands first in the page, so that it hears every error; moves each slider as a person would.
DRIVER = """
<script>
const faults = [];
addEventListener("error", event => faults.push(event.message));
console.error = console.warn = text => faults.push(String(text));
addEventListener("load", () => {
  const say = () => document.getElementById("say").textContent, told = {start: say()};
  const knobs = [...document.querySelectorAll("input")];
  const move = i => {
    if (i === knobs.length) {
      told.faults = faults;
      told.spoken = knobs.every(knob => knob.getAttribute("aria-valuetext"));
      told.drawn = document.querySelectorAll("svg path").length;
      told.notes = [...document.querySelectorAll("#notes li")].map(line => line.textContent);
      told.command = document.getElementById("command").textContent;
      const result = document.createElement("pre");
      result.id = "result";
      result.textContent = JSON.stringify(told);
      return document.body.append(result);
    }
    knobs[i].value = Number(knobs[i].value) + 20;
    knobs[i].dispatchEvent(new Event("input"));
    setTimeout(() => { told[knobs[i].id] = say(); move(i + 1); }, 100);
  };
  move(0);
});
</script>
"""


@pytest.mark.skipif(not BROWSER, reason="chromium is not installed")
def test_a_moved_slider_changes_the_sentence_in_a_browser(page, tmp_path):
    path, _, _ = page
    driven = tmp_path / "driven.html"
    text = path.read_text()
    driven.write_text(text.replace("<title>", DRIVER + "<title>", 1))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", driven.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    told = json.loads(html.unescape(found[1]))
    assert told["faults"] == [] and told["spoken"] and told["drawn"] >= 5
    said = [told[name] for name in ("start", "budget", "label_usd", "gpu_usd", "labels")]
    assert len(set(said)) == len(said), said
    assert re.match(r"\$300: .* leads from \$", said[0])
    assert told["notes"] == ["one", "two </script>"]
    assert "--labels 11000 " in told["command"]  # 5,000 times 10^(20/60), in two digits
