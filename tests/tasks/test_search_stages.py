"""The search and select stages, one after the other, on a small planted log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctrmodels.archspec import ArchSpec, FieldDimMask, ValueMask
from ctrmodels.data import Schema
from ctrmodels.data.planted import planted_interests, planted_widths
from ctrmodels.errors import InputError
from ctrmodels.search.run import Candidate
from tasks import config, search_embedding, search_interaction, select_embedding, select_interaction
from tasks.runtime import manifest
from tasks.runtime.figure import Figure
from tasks.runtime.stage import Stage, execute


def raw_params() -> dict:
    return {
        "data": {"source": "simulated", "fields": [{"name": f"f{i}", "kind": "categorical"} for i in range(8)],
                 "objectives": [{"name": "click", "label": "click"}], "split": {"by": "random"}},
        "training": {"embedding_dim": 8, "hidden": [8], "epochs": 2, "batch_size": 256, "learning_rate": 0.005,
                     "device": "cpu"},
        "search_embedding": {"methods": ["uniform", "autodim", "pep"], "seeds": 2,
                             "autodim": {"candidates": [2, 8], "epochs": 2},
                             "pep": {"targets": [0.7, 0.5]}},
        "search_interaction": {"methods": ["all_pairs", "autofis"], "seeds": 2,
                               "autofis": {"epochs": 1, "target_threshold": 0.55}},
        "retrain": {"models": ["shared_bottom"]},
    }


def run(root: Path, name: str, module, key: str | None = None, raw: dict | None = None) -> Path:
    stage = Stage(name, key, config.parse(raw or raw_params(), "params.yaml"), root)
    execute(stage, module.run)
    return stage.final


def best(folder: Path, level: str) -> ArchSpec:
    """Of a search's outcome: what it says of its best seed."""
    candidates = map(Candidate.parse, json.loads((folder / "candidates.json").read_text()))
    return ArchSpec.load(folder / next(c for c in candidates if c.name == level).best_spec())


def results(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every search stage done."""
    root = tmp_path_factory.mktemp("search")
    planted_widths(0, rows=3000).save(root / "outputs/encode")
    manifest.write(root / "outputs/encode")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTRMODELS_WORKERS", "1")
        for key in ("uniform", "autodim", "pep"):
            run(root, "search_embedding", search_embedding, key)
        run(root, "select_embedding", select_embedding)
        for key in ("all_pairs", "autofis"):
            run(root, "search_interaction", search_interaction, key)
        run(root, "select_interaction", select_interaction)
    return root


def test_every_method_leaves_specs_candidates_trace_and_figures(workspace):
    for stage, keys in (("search_embedding", ("uniform", "autodim", "pep")),
                        ("search_interaction", ("all_pairs", "autofis"))):
        for key in keys:
            folder = workspace / "outputs" / stage / key
            manifest.verify(folder)
            candidates = json.loads((folder / "candidates.json").read_text())
            for c in candidates:
                assert len(c["valid"]["auc"]) == 2
                if c["spec"]:
                    for seed in c["seeds"]:
                        found = ArchSpec.load(folder / c["spec"] / str(seed))
                        found.check(Schema.load(workspace / "outputs/encode/schema.json"))
            assert (folder / "trace.jsonl").stat().st_size
            assert list((folder / "figures").glob("*.json"))
    pep = workspace / "outputs/search_embedding/pep"
    assert isinstance(best(pep, "pep-0.5").alloc, ValueMask)
    assert isinstance(best(workspace / "outputs/search_embedding/autodim", "autodim").alloc, FieldDimMask)


@pytest.mark.parametrize("key", [k for k in config.EMBEDDING_METHODS if k not in ("uniform", "autodim", "pep")])
def test_every_other_embedding_key_is_a_stage(key, tmp_path, monkeypatch):
    """On a log with histories: it leaves a spec of this log per candidate, its controls, and its figures."""
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    planted_interests(0, rows=4000).save(tmp_path / "outputs/encode")
    manifest.write(tmp_path / "outputs/encode")
    raw = raw_params()
    raw["data"]["fields"] = [{"name": "item_id", "kind": "categorical", "side": "item"},
                             {"name": "seen", "kind": "sequence", "side": "user", "of": "item_id", "max_length": 15}]
    raw["search_embedding"] = {
        "methods": ["uniform", key], "seeds": 1, "narrow": {"widths": [4]}, "frequency_rule": {"candidates": [0, 2, 8]},
        "rare_ids": {"thresholds": [3]}, "aim_eds": {"target_threshold": 0.5, "epochs": 1}, "nis": {"every": 1},
        "autoemb": {"candidates": [2, 8]}, "res_embedding": {"fusions": ["avg"]}}
    folder = run(tmp_path, "search_embedding", search_embedding, key, raw)
    manifest.verify(folder)
    candidates = json.loads((folder / "candidates.json").read_text())
    kinds = [c["kind"] for c in candidates]
    assert kinds in (["rule"] * len(kinds), ["searched", "random"])
    for c in candidates:
        if c["spec"]:
            for seed in c["seeds"]:
                found = ArchSpec.load(folder / c["spec"] / str(seed))
                found.check(Schema.load(tmp_path / "outputs/encode/schema.json"))
    figures = {p.stem for p in (folder / "figures").glob("*.json")}
    assert {"training_curves", "width_by_frequency", "width_by_field"} <= figures
    assert ("envelopes" in figures) == (key == "res_embedding")


@pytest.mark.parametrize("key", ["no_pairs", "mutual_information", "split_gain"])
def test_every_rule_for_interactions_is_a_stage(key, workspace, monkeypatch):
    """A level per share, without a random control, as a table and, where pairs have a score, as pictures."""
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    raw = raw_params()
    raw["search_interaction"] |= {"methods": ["all_pairs", key], "mutual_information": {"shares": [0.5, 0.1]},
                                  "split_gain": {"shares": [0.5, 0.1], "trees": 3}}
    folder = run(workspace, "search_interaction", search_interaction, key, raw)
    manifest.verify(folder)
    candidates = json.loads((folder / "candidates.json").read_text())
    levels = {"no_pairs": 0} if key == "no_pairs" else {f"{key}-0.5": 14, f"{key}-0.1": 3}
    assert {c["name"]: c["interactions"] for c in candidates} == levels
    assert {c["kind"] for c in candidates} == {"rule"}
    figures = {p.stem for p in (folder / "figures").glob("*.json")}
    scored = {f"{figure}_{level.replace('.', '_').replace('-', '_')}" for level, n in levels.items() if n
              for figure in ("kept", "strongest", "gates")}
    assert figures == {"training_curves", *scored}


def test_autogroup_is_a_stage(workspace, monkeypatch):
    """Its groups are a table, and what its seeds agree in is compared with chance."""
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    raw = raw_params()
    raw["search_interaction"] |= {"methods": ["all_pairs", "autogroup"],
                                  "autogroup": {"groups": [2, 3, 3], "dims": [3, 4], "epochs": 1}}
    folder = run(workspace, "search_interaction", search_interaction, "autogroup", raw)
    manifest.verify(folder)
    found, random = json.loads((folder / "candidates.json").read_text())
    assert (found["kind"], random["kind"]) == ("searched", "random")
    groups = best(folder, "autogroup").groups
    table = Figure.load(folder / "figures/kept_autogroup.json")
    assert len(table.values) == len(groups) > 0
    figures = {p.stem for p in (folder / "figures").glob("*.json")}
    assert {"training_curves", "stability", "kept_autogroup"} <= figures
    assert 0 < json.loads((folder / "metrics.json").read_text())["autogroup.jaccard.groups_of_order_2"] <= 1


def test_autofeature_is_a_stage(workspace, monkeypatch):
    """Its micro-networks are listed by their genes, with what the judged genomes say of each, beside equal cost."""
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    raw = raw_params()
    raw["search_interaction"] |= {"methods": ["all_pairs", "autofeature"],
                                  "autofeature": {"slots": 2, "evaluations": 5, "epochs": 0.5, "pare": None,
                                                  "breeding": {"initial": 3, "rebuild": 2}}}
    folder = run(workspace, "search_interaction", search_interaction, "autofeature", raw)
    manifest.verify(folder)
    found, random = json.loads((folder / "candidates.json").read_text())
    assert (found["kind"], random["kind"]) == ("searched", "random")
    assert found["costs"] == random["costs"] and found["steps"] == pytest.approx(5 * (4 + 300 / 256 / 3))
    networks = best(folder, "autofeature").interactions
    table = Figure.load(folder / "figures/kept_autofeature.json")
    assert len(table.values) == len(networks) > 0
    assert {line[2].split()[0] for line in table.values} == {"micronet"}
    figures = {p.stem for p in (folder / "figures").glob("*.json")}
    assert figures == {"training_curves", "stability", "kept_autofeature", "strongest_autofeature", "gates_autofeature"}


def test_quality_stands_against_flops_and_the_number_of_interactions_with_the_controls(workspace):
    shown = {cost: Figure.load(workspace / f"outputs/select_interaction/figures/quality_against_{cost}.json")
             for cost in ("cost", "interactions")}
    for figure in shown.values():
        assert {s.name for s in figure.series} == {"searched", "unsearched control", "random control of equal cost"}
    by_name = {s.name: s for s in shown["interactions"].series}
    assert list(by_name["unsearched control"].x) == [28]
    found = best(workspace / "outputs/search_interaction/autofis", "autofis").interactions
    assert by_name["searched"].x[0] == by_name["random control of equal cost"].x[0]
    metrics = json.loads((workspace / "outputs/search_interaction/autofis/metrics.json").read_text())
    assert metrics["autofis.interactions"] == by_name["searched"].x[0] > 0
    assert 0 <= metrics["autofis.jaccard.order_2"] <= 1
    kept = Figure.load(workspace / "outputs/search_interaction/autofis/figures/kept_autofis.json")
    assert len(kept.values) == len(found)


def test_leaderboards_show_controls_beside_every_search_and_mark_one_choice(workspace):
    for stage, searched in (("select_embedding", {"autodim", "pep-0.7", "pep-0.5"}),
                            ("select_interaction", {"autofis"})):
        folder = workspace / "outputs" / stage
        board = json.loads((folder / "leaderboard.json").read_text())
        names = {r["candidate"]: r["kind"] for r in board["rows"]}
        assert {n for n, k in names.items() if k == "searched"} == searched
        assert {n for n, k in names.items() if k == "random"} == {f"random({n})" for n in searched}
        assert sum(k == "control" for k in names.values()) == 1
        chosen = [r["candidate"] for r in board["rows"] if r["chosen"]]
        assert chosen == [json.loads((folder / "choice.json").read_text())["candidate"]]


def test_the_final_spec_is_the_chosen_embedding_with_the_chosen_interactions(workspace):
    embedding = ArchSpec.load(workspace / "outputs/select_embedding/spec")
    final = ArchSpec.load(workspace / "outputs/select_interaction/spec")
    assert embedding.interactions is None
    assert final.interactions is not None
    assert type(final.alloc) is type(embedding.alloc)
    assert final.cost is not None


def test_a_second_run_gives_the_same_bytes(workspace, monkeypatch):
    monkeypatch.setenv("CTRMODELS_WORKERS", "1")
    for name, module, key in (("search_embedding", search_embedding, "pep"),
                              ("search_interaction", search_interaction, "autofis"),
                              ("select_interaction", select_interaction, None)):
        folder = workspace / "outputs" / name / (key or "")
        before = results(folder)
        run(workspace, name, module, key)
        assert results(folder) == before


def test_a_budget_that_nothing_fits_is_refused_in_one_line(workspace):
    raw = raw_params()
    raw["select_embedding"] = {"budget": 1e-6}
    with pytest.raises(InputError, match=r"select_embedding\.budget") as error:
        run(workspace, "select_embedding", select_embedding, raw=raw)
    assert "\n" not in str(error.value)


def test_a_missing_search_names_the_stage_to_run(tmp_path):
    with pytest.raises(InputError, match="dvc repro search_embedding@uniform"):
        run(tmp_path, "select_embedding", select_embedding)


def test_a_spec_of_another_log_is_refused(workspace, tmp_path):
    planted_widths(1, rows=3000).save(tmp_path / "outputs/encode")
    ArchSpec.load(workspace / "outputs/select_embedding/spec").save(tmp_path / "outputs/select_embedding/spec")
    for name in ("encode", "select_embedding"):
        manifest.write(tmp_path / "outputs" / name)
    with pytest.raises(InputError, match="_hash"):
        run(tmp_path, "search_interaction", search_interaction, "all_pairs")
