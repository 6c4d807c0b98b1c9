"""The report from a whole, made-up run: complete, self-contained, inert, reproducible."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ctrmodels.errors import InputError
from tasks import config, report
from tasks.rendering import evidence, glossary, verdict
from tasks.runtime import manifest
from tasks.runtime.figure import Axis, Figure, Series
from tasks.runtime.stage import Stage, execute

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script>"
FIELDS = ("user_id", "item_id", "age", "gender", "occupation", "genres")
SEEDS = [0, 1, 2]


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    """The run that the report belongs to; W&B is off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setenv("CTRMODELS_RUN_ID", "manual__2026-11-21")
        patch.setenv("CTRMODELS_REVISION", "c0ffee" * 6 + "c0ff")
        yield


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A workspace in which every stage before the report has run."""
    made_up_run(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with its report, to look at and not to change."""
    root = tmp_path_factory.mktemp("written")
    made_up_run(root)
    write(root)
    return root


def text_of(root: Path) -> str:
    return (root / "outputs" / "report" / "report.html").read_text()


def summary_of(root: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((root / "outputs" / "report" / "summary.json").read_text())
    return summary


def made_up_run(root: Path) -> None:
    """Write the outputs of every stage before the report, as the stages write them."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    params["search_embedding"]["methods"] = ["uniform", "autodim", "pep"]
    params["search_interaction"]["methods"] = ["all_pairs", "autofis"]
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    rng = np.random.default_rng(0)
    _data_stages(root, rng)
    _search(root, "embedding", {"uniform": ["uniform"], "autodim": ["autodim"], "pep": ["pep-0.5", "pep-0.15"]}, {
        "uniform": (.7810, .0006, 48_213), "autodim": (.7822, .0005, 21_904), "random(autodim)": (.7771, .0009, 21_904),
        "pep-0.5": (.7826, .0004, 24_106), "random(pep-0.5)": (.7702, .0012, 24_106),
        "pep-0.15": (.7819, .0008, 7_232), "random(pep-0.15)": (.7566, .0021, 7_232)}, "pep-0.5", rng)
    _search(root, "interaction", {"all_pairs": ["all_pairs"], "autofis": ["autofis"]}, {
        "all_pairs": (.7826, .0004, 24_106), "autofis": (.7831, .0005, 24_106),
        "random(autofis)": (.7809, .0011, 24_106)}, "autofis", rng)
    _models(root, rng)
    _fusion(root, rng)


def _stage(root: Path, title: str, metrics: dict[str, float], figures: list[Figure], seconds: float,
           files: dict[str, Any] | None = None, **measurements: float) -> None:
    name, _, key = title.partition("@")
    folder = root / "outputs" / name / key
    for figure in figures:
        figure.save(folder / "figures")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for file, content in {"metrics.json": metrics, **(files or {})}.items():
        (folder / file).write_text(json.dumps(content))
    manifest.write(folder)
    (root / "measurements").mkdir(exist_ok=True)
    (root / "measurements" / f"{title}.json").write_text(json.dumps({
        "stage": name, "key": key or None, "run_id": "manual__2026-11-21", "revision": "c0ffee" * 6 + "c0ff",
        "airflow": {"dag_id": "ctr_automl", "run_id": "manual__2026-11-21"}, "manifest": "9f" * 32, "inputs": {},
        "measurements": {"seconds": seconds, "peak_memory_mb": 640.0, **measurements},
        "wandb": {"id": "7bae7a89cf7017ef", "mode": "offline", "url": None}}))


def _data_stages(root: Path, rng: np.random.Generator) -> None:
    roles = {"train": 62_950, "arch": 7_050, "valid": 10_000, "test": 20_000}
    ranks = np.unique(np.geomspace(1, 900, 40).round()).tolist()
    days = [f"2026-11-{d:02d}" for d in range(1, 15)]
    _stage(root, "ingest", {
        "rows": 100_000, "days": 14, **{f"rows.{r}": n for r, n in roles.items()},
        **{f"positive_rate.{o}{s}": rate + .01 * i for o, rate in (("like", .55), ("love", .21))
           for i, s in enumerate(("", ".train", ".arch", ".valid", ".test"))}}, [
        Figure("rows", "Rows by day and role", "bar", "How many impressions of each day play which role.",
               Axis("day"), Axis("rows"),
               [Series(r, days, rng.integers(10, n, 14).tolist()) for r, n in roles.items()]),
    ], 21.4)
    _stage(root, "frequency", {"rows": 100_000, "distinct.user_id": 943}, [
        Figure("frequency", "How often each value occurs", "line", "A straight line is a power law.",
               Axis("rank of the value", "log"), Axis("rows on train", "log"),
               [Series(f, ranks[:8 + 6 * i], (3e4 / np.array(ranks[:8 + 6 * i]) ** (.6 + .1 * i)).tolist())
                for i, f in enumerate(FIELDS)]),
        Figure("coverage", "How much of the log the frequent values cover", "line", "Share of occurrences.",
               Axis("most frequent values", "log"), Axis("share of occurrences"),
               [Series(f, ranks, np.linspace(.05 * i, 1, len(ranks)).tolist()) for i, f in enumerate(FIELDS)]),
        Figure("fields", "Fields", "table", "Distinct values.", columns=["field", "kind", "distinct", "missing"],
               values=[[f, "categorical", int(n), m] for f, n, m in
                       zip(FIELDS, (943, 1682, 61, 2, 21, 19), (0., 0., .0, .1, .0, .25), strict=True)]),
    ], 34.0)
    _stage(root, "validate", {"passed": 31, "warnings": 2, "failed": 0}, [
        Figure("expectations", "Expectations", "table", "Critical ones stop the run.",
               columns=["expectation", "severity", "observed", "limit", "outcome"],
               values=[["columns are exactly those declared", "critical", "16", "16", "passed"],
                       ["love implies like", "critical", 0, 0, "passed"],
                       [f"null rate of {HOSTILE}", "critical", .013, .5, "passed"],
                       ["unseen item_id on test", "warning", .61, .5, "warning"],
                       ["PSI of age", "warning", .14, .1, "warning"]])], 17.0)
    _stage(root, "encode", {"vocab.user_id": 944, "oov.item_id.test": .013}, [
        Figure("oov", "Out-of-vocabulary rate", "bar", "Share of values without an id of their own.", Axis("field"),
               Axis("share"), [Series(r, FIELDS, rng.uniform(0, .04, 6).tolist()) for r in ("valid", "test")])], 25.0)


def _search(root: Path, subject: str, levels: dict[str, list[str]], results: dict[str, tuple[float, float, int]],
            winner: str, rng: np.random.Generator) -> None:
    control = next(iter(results))
    rows = [{"candidate": name, "kind": "control" if name == control else "random" if "(" in name else "searched",
             "valid": mean, "valid_sd": sd, "seeds": SEEDS, "chosen": name == winner, "search_steps": 900.0,
             "retrain_steps": 610.0, "parameters": embedding + 14_000, "parameters_embedding": embedding,
             "flops": 41_000 - 9_000 * ("autofis" in name), "bytes": 4 * (embedding + 14_000), "valid_auc": mean}
            for name, (mean, sd, embedding) in sorted(results.items(), key=lambda r: -r[1][0])]
    for method, names in levels.items():
        found = [r for r in rows if r["candidate"].removeprefix("random(").removesuffix(")") in names]
        curves = Figure("training_curves", f"Retraining, {method}", "line", "Valid AUC after every epoch, first seed.",
                        Axis("epoch"), Axis("valid AUC"),
                        [Series(r["candidate"], list(range(1, 9)),
                                (r["valid"] - .08 / np.arange(1, 9) ** 1.5).tolist()) for r in found])
        extra = []
        if method == "pep":
            extra.append(Figure("kept_by_frequency", "Kept dimensions against frequency", "line", "Ids in ten groups.",
                                Axis("occurrences on train", "log"), Axis("kept dimensions"),
                                [Series(n, np.geomspace(1, 500, 10).tolist(), np.linspace(1, 14, 10).tolist())
                                 for n in names]))
        if method == "autodim":
            extra.append(Figure("widths", "Chosen embedding widths", "scatter", "Each point is a field.",
                                Axis("ids of the field", "log"), Axis("embedding width"),
                                [Series(method, [944, 1683, 62, 3, 22, 20], [16, 16, 4, 2, 4, 2], labels=FIELDS)]))
        if method == "autofis":
            gates = [[float(rng.normal()) if j > i and rng.random() > .4 else 0. if j > i else None for j in range(6)]
                     for i in range(6)]
            extra.append(Figure("gates", "Gates of the pairs", "heatmap", "Zero = dropped.", rows=FIELDS,
                                columns=FIELDS, values=gates))
        _stage(root, f"search_{subject}@{method}", {f"{r['candidate']}.valid.auc.like@all": r["valid"] for r in found},
               [curves, *extra], 88.0, {"candidates.json": [{"name": r["candidate"]} for r in found]},
               **{"seconds.search": 0.0 if method == next(iter(levels)) else 41.0, "seconds.retrain": 33.0})
    reason = f"{winner} has the best valid auc, {results[winner][0]:.4f}"
    _stage(root, f"select_{subject}", {"valid.auc": results[winner][0]}, [
        Figure("quality_against_cost", "Valid AUC against cost", "scatter", "Every candidate.",
               Axis("stored embedding values"), Axis("valid auc"),
               [Series(kind, [r["parameters_embedding"] for r in rows if r["kind"] == kind],
                       [r["valid"] for r in rows if r["kind"] == kind],
                       [r["valid_sd"] for r in rows if r["kind"] == kind],
                       [r["candidate"] for r in rows if r["kind"] == kind])
                for kind in ("searched", "control", "random")])], 0.4, {
        "leaderboard.json": {"metric": "auc", "rule": "best mean valid auc within the budget", "reason": reason,
                             "rows": rows},
        "choice.json": {"candidate": winner, "reason": reason}})


def _models(root: Path, rng: np.random.Generator) -> None:
    rows = []
    for name, mean, parameters in (("esmm", .7913, 41_000), ("mmoe", .7909, 46_000), ("shared_bottom", .7897, 40_500)):
        values = {"valid.auc.like@all": mean - .004, "valid.auc.love@all": mean + .004}
        rows.append({"candidate": name, "kind": "model", "valid": mean, "valid_sd": .0006, "seeds": 3,
                     "chosen": name == "esmm", "parameters": parameters, "parameters_embedding": 24_106,
                     "flops": 52_000, "bytes": 4 * parameters, **values})
        figures = [Figure("training_curves", "Training", "line", "Mean AUC on valid.", Axis("epoch"), Axis("AUC"),
                          [Series(f"seed {s}", list(range(1, 7)),
                                  (mean - .05 / np.arange(1, 7) - .001 * s).tolist()) for s in SEEDS])]
        if name == "mmoe":
            figures.append(Figure("gates", "Use of the experts", "heatmap", "Mean gate weight on valid.",
                                  rows=["like", "love"], columns=[f"expert {e}" for e in (1, 2, 3, 4)],
                                  values=[[.41, .29, .2, .1], [.1, .15, .25, .5]]))
        _stage(root, f"retrain@{name}", values, figures, 44.0)
    reason = "esmm has the best valid auc, 0.7913 ± 0.0006"
    _stage(root, "select_model", {
        "test.auc.like@all": .7812, "test.auc.like@all.low": .7751, "test.auc.like@all.high": .7874,
        "test.auc.love@all": .7894, "test.auc.love@all.low": .7829, "test.auc.love@all.high": .7958}, [
        Figure("calibration", "Calibration of esmm on test", "line", "On the diagonal a prediction is a rate.",
               Axis("mean prediction"), Axis("observed rate"),
               [Series("like@all", np.linspace(.1, .9, 20).tolist(), np.linspace(.12, .88, 20).tolist()),
                Series("love@all", np.linspace(.02, .6, 20).tolist(), np.linspace(.03, .57, 20).tolist()),
                Series("perfect", [0, .9], [0, .9])])], 5.0, {
        "leaderboard.json": {"metric": "auc", "rule": "best mean valid auc@all", "reason": reason, "rows": rows,
                             "notes": ["No multi-task gain: retrain.models does not have single."]},
        "choice.json": {"candidate": "esmm", "reason": reason}})


def _fusion(root: Path, rng: np.random.Generator) -> None:
    x, y = rng.normal(.72, .01, 80), rng.normal(.61, .01, 80)
    gain = "report.gain.ndcg@10.like"
    metrics = {"report.ndcg@10.like": .731, gain: .0041, f"{gain}.low": .0012, f"{gain}.high": .007}
    _stage(root, "tune_fusion", metrics, [
        Figure("front", "Pareto front", "scatter", "Every trial on the reporting window.", Axis("NDCG@10, like"),
               Axis("NDCG@10, love"),
               [Series("trials", x.tolist(), y.tolist()),
                Series("front", [.735, .741, .744], [.634, .631, .62], labels=["", "recommended", "like alone"])])],
        12.0, {"fusion.json": {
            "metric": "ndcg@10", "primary": "like", "rule": "largest ndcg@10 of like on the tuning window",
            "reason": "The scores are fused by weighted_product with the weights like 1, love 0.42: ndcg@10 of like is "
                      "0.7310 on the report window, +0.0041 [+0.0012, +0.0070] against equal weights"}})


def write(root: Path) -> str:
    """Run the stage; returns the page."""
    params = config.load(root / "params.yaml")
    execute(Stage("report", None, params, root), report.run)
    return text_of(root)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and the text in each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_nothing(written: Path) -> None:
    text = text_of(written)
    tags = Tags(text).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    for tag, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
                assert value is not None
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    policy = [a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_every_figure_of_every_stage_is_on_the_page(written: Path) -> None:
    text = html.unescape(text_of(written))
    files = list(written.glob("outputs/**/figures/*.json"))
    assert len(files) > 15
    for file in files:
        figure = Figure.load(file)
        assert figure.title in text, file
        assert figure.caption in text, file


def test_the_verdict_names_winners_costs_controls_and_the_fusion(written: Path) -> None:
    assert summary_of(written)["verdict"] == [
        "pep-0.5 decides the embedding, with 50.0 % of the unsearched model's embedding values; valid auc 0.7826 ± "
        "0.0004: +0.0016 (better, beyond the seeds' spread) against the unsearched model, and +0.0124 (better, beyond "
        "the seeds' spread) against a random architecture of the same cost.",
        "autofis decides the interaction, with 78.0 % of the unsearched model's floating-point operations per row; "
        "valid auc 0.7831 ± 0.0005: +0.0005 (inside the seeds' spread) against the unsearched model, and +0.0022 "
        "(better, beyond the seeds' spread) against a random architecture of the same cost.",
        "Of the models, esmm has the best valid auc, 0.7913 ± 0.0006.",
        "The scores are fused by weighted_product with the weights like 1, love 0.42: ndcg@10 of like is 0.7310 on the "
        "report window, +0.0041 [+0.0012, +0.0070] against equal weights.",
    ]


def test_what_a_reader_must_know_to_compare_the_models_is_told(written: Path) -> None:
    assert "No multi-task gain: retrain.models does not have single." in text_of(written)


def test_a_control_that_wins_is_told_as_such(run: Path) -> None:
    path = run / "outputs" / "select_embedding" / "leaderboard.json"
    board = json.loads(path.read_text())
    for row in board["rows"]:
        row["chosen"] = row["candidate"] == "uniform"
    path.write_text(json.dumps(board))
    found = evidence.read(run, config.load(run / "params.yaml"), "run", None)
    sentence = verdict.sentences(found)[0]
    assert sentence.startswith("No embedding search earned its place: uniform, the unsearched model, stays")


def test_the_leaderboard_shows_spread_cost_and_the_distance_to_the_control(written: Path) -> None:
    board = summary_of(written)["leaderboards"]["Embedding search"]
    assert board[0] == ["candidate", "kind", "valid auc", "to control", "parameters", "of these embedding",
                        "FLOPs per row", "bytes"]
    assert board[1] == ["pep-0.5 \N{CHECK MARK}", "searched", "0.7826 ± 0.0004", "+0.0016", "38.1 k", "24.1 k", "41 k",
                        "149 KiB"]
    assert len(board) == 8


def test_a_name_that_is_markup_stays_text(run: Path) -> None:
    """Whatever a log or a user calls things, the page shows it and no browser reads it as markup."""
    for path in run.glob("outputs/**/*.json"):
        text = path.read_text().replace("user_id", HOSTILE).replace("pep-0.5", f"p{HOSTILE}")
        path.write_text(text.replace("love@all", "love@all<img src=x onerror=alert(2)>"))
    for folder in {p.parent for p in run.glob("outputs/**/MANIFEST.json")}:
        manifest.write(folder)
    params = yaml.safe_load((run / "params.yaml").read_text())
    params["report"]["title"] = f"</title>{HOSTILE}"
    (run / "params.yaml").write_text(yaml.safe_dump(params))
    text = write(run)
    tags = Tags(text).tags
    assert not [t for t in tags if t[0] in ("script", "img")]
    assert html.escape(HOSTILE) in text
    assert "&lt;/title&gt;" in text


def test_the_same_run_gives_the_same_bytes(written: Path, run: Path) -> None:
    assert text_of(written) == write(run)


def test_what_was_not_measured_or_recorded_is_said(run: Path) -> None:
    """Measurements, dvc.lock and figures may be absent; the page says so and is otherwise whole."""
    shutil.rmtree(run / "measurements")
    for path in run.glob("outputs/encode/figures/*.json"):
        path.unlink()
    manifest.write(run / "outputs" / "encode")
    text = write(run)
    assert "not measured" in text
    assert "encode recorded no figure." in text
    assert "not run by Airflow" in text


def test_lineage_names_dvc_hash_wandb_run_and_a_reused_result(run: Path) -> None:
    (run / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"ingest": {
        "cmd": "x", "outs": [{"path": "outputs/ingest", "md5": "abcdef0123456789.dir"}]}}}))
    record = run / "measurements" / "ingest.json"
    record.write_text(record.read_text().replace("manual__2026-11-21", "manual__earlier"))
    text = write(run)
    for shown in ("abcdef012345", "7bae7a89cf7017ef", "manual__earlier (reused)", "c0ffeec0ffee", "ctr_automl"):
        assert shown in text


def test_a_result_that_changed_since_its_stage_wrote_it_is_refused(run: Path) -> None:
    (run / "outputs" / "select_model" / "leaderboard.json").write_text("{}")
    with pytest.raises(InputError, match=r"run the stage that writes select_model again"):
        write(run)
    assert not (run / "outputs" / "report").exists()


def test_every_word_of_the_leaderboards_is_in_the_glossary() -> None:
    terms = " ".join(term for term, _ in glossary.TERMS)
    for word in ("searched", "control", "random", "FLOPs", "bytes", "AUC", "GAUC", "LogLoss", "reused"):
        assert word in terms


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
         "--disable-features=Translate,OptimizationHints,MediaRouter")


def in_browser(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open ``page`` with an empty profile in ``folder``; stdout is the document after loading."""
    assert CHROMIUM is not None
    return subprocess.run([CHROMIUM, *QUIET, f"--user-data-dir={folder / 'profile'}", "--dump-dom",
                           "--virtual-time-budget=3000", *options, page.as_uri()],
                          capture_output=True, text=True, check=True, timeout=120)


def observed(folder: Path, page: Path) -> tuple[str, list[str], set[str]]:
    """The loaded document, the console's lines, and the addresses that the page (not the browser) asked for."""
    record = folder / "net.json"
    done = in_browser(folder, page, "--enable-logging=stderr", f"--log-net-log={record}")
    events = json.loads(record.read_text())
    start = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    jobs = [e["params"] for e in events["events"] if e["type"] == start and "initiator" in e.get("params", {})]
    return (done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line],
            {job["url"] for job in jobs if job["initiator"] != "not an origin"})


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_a_console_message_or_a_request(written: Path, tmp_path: Path) -> None:
    document, console, asked = observed(tmp_path, written / "outputs" / "report" / "report.html")
    assert (console, asked) == ([], set())
    assert document.count("<section") == 9
    assert document.count("<figure") > 15


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_browser_test_would_notice(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9999/a.png'><script>console.error('x')</script>")
    _, console, asked = observed(tmp_path, page)
    assert len(console) == 1
    assert asked == {"http://127.0.0.1:9999/a.png"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1440])
def test_no_part_of_the_page_is_wider_than_the_window(written: Path, tmp_path: Path, width: int) -> None:
    """Tables and pictures scroll inside their own frames; the page itself never scrolls sideways."""
    inside = html.escape(re.sub(r"<meta http-equiv[^>]*>", "", text_of(written)), quote=True)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe style='width:{width}px;height:900px;border:0' srcdoc=\"{inside}\"></iframe><script>onload=()=>{{"
        "document.title=document.querySelector('iframe').contentDocument.documentElement.scrollWidth}</script>")
    found = re.search(r"<title>(\d+)</title>", in_browser(tmp_path, frame).stdout)
    assert found is not None
    assert int(found[1]) <= width


def test_one_seed_claims_no_spread() -> None:
    row = {"valid": 0.6, "valid_sd": 0.0, "seeds": [0]}
    told = verdict._compared(row, {**row, "valid": 0.5}, "auc")
    assert "one seed" in told
    assert "spread is not known" in told
