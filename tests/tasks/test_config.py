"""params.yaml is closed: everything that cannot work is refused in one line that names the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctrmodels.errors import InputError
from tasks import config

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def params(**changes: Any) -> dict[str, Any]:
    """A read params.yaml with dotted keys (``__`` for the dot) replaced; ``...`` removes one."""
    raw: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, value in changes.items():
        node: Any = raw
        *path, last = dotted.split("__")
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
    return raw


def refused(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        config.parse(params(**changes), "params.yaml")
    line = str(caught.value)
    assert "\n" not in line and line.startswith("params.yaml: ")
    return line


@pytest.mark.parametrize(("key", "value", "shown"), [
    ("trainin", {}, "trainin = {}: unknown key"),
    ("training__lr", 0.1, "training.lr = 0.1: unknown key"),
    ("data__fields__0__vocab", 3, "data.fields.0.vocab = 3: unknown key"),
    ("training__epochs", "many", "training.epochs = 'many'"),
    ("training__epochs", 0, "training.epochs = 0"),
    ("training__learning_rate", -0.1, "training.learning_rate = -0.1"),
    ("select_embedding__budget", -0.5, "select_embedding.budget = -0.5"),
    ("select_embedding__budget", 1.5, "select_embedding.budget = 1.5"),
    ("search_embedding__methods", ["uniform", "magic"], "search_embedding.methods.1 = 'magic'"),
    ("search_interaction__methods", ["all_pairs", "pep"], "search_interaction.methods.1 = 'pep'"),
    ("retrain__models", ["ple9"], "retrain.models.0 = 'ple9'"),
    ("retrain__models", ["mmoe-magic"], "retrain.models.0 = 'mmoe-magic'"),
    ("retrain__models", ["mmoe-"], "retrain.models.0 = 'mmoe-'"),
    ("retrain__history", "lstm", "retrain.history = 'lstm'"),
    ("retrain__balancers__dwa__temperature", 0, "retrain.balancers.dwa.temperature = 0"),
    ("search_embedding__objective", "buy", "search_embedding.objective = 'buy' is not a binary objective"),
    ("search_embedding__seeds", 0, "search_embedding.seeds = 0"),
    ("data__source", "internet", "data.source = 'internet'"),
    ("data__fields", [], "data.fields = []"),
    ("data__objectives", [], "data.objectives = []"),
    ("data__fields__0__name", "user id", "data.fields.0.name = 'user id'"),
    ("data__fields__0__kind", "text", "data.fields.0.kind = 'text'"),
    ("data__split__test", 1.0, "data.split.test = 1.0"),
    ("ingest__partitions", 0, "ingest.partitions = 0"),
])
def test_keys_and_values_outside_the_models(key: str, value: Any, shown: str) -> None:
    assert shown in refused(**{key: value})


def test_a_section_may_be_empty_and_not_absent() -> None:
    """DVC refuses a stage whose section is absent, when its turn comes."""
    config.check_sections(params(), "params.yaml")
    for name in ("select_model", "validate"):
        with pytest.raises(InputError, match=f"write `{name}: {{}}`"):
            config.check_sections(params(**{name: ...}), "params.yaml")


@pytest.mark.parametrize(("changes", "says"), [
    ({"data__objectives__1__after": "click"}, "objective 'love': after = 'click' is no earlier objective"),
    ({"data__objectives": [{"name": "love", "label": "a", "after": "like"}, {"name": "like", "label": "b"}]},
     "list the parent first"),
    ({"data__objectives__0__kind": "regression"}, "after = 'like' is not binary"),
    ({"data__objectives": [{"name": "watch", "kind": "regression", "label": "w"}]}, "at least one binary objective"),
    ({"data__objectives": [{"name": "a", "label": "x", "after": "b"}, {"name": "b", "label": "y", "after": "a"}]},
     "after = 'b' is no earlier objective; list the parent first"),
    ({"data__objectives": [{"name": "a", "label": "x", "after": "a"}]}, "after = 'a' is no earlier objective"),
    ({"data__objectives__0__name": "gender"}, "the name 'gender' is used twice"),
    ({"data__fields__2__value": "rating >= 4"}, "field 'age' reads 'rating >= 4', the label of objective 'like'"),
    ({"data__objectives__0__label": "age"}, "a model would read the answer there; take the field out"),
    ({"data__fields__7__max_length": 0}, "needs max_length"),
    ({"data__fields__8__of": ...}, "build needs of"),
    ({"data__fields__8__of": "age"}, "of = 'age' is not a categorical field"),
    ({"data__fields__8__value": "x"}, "build goes without value"),
    ({"data__fields__0__delimiter": "|"}, "belong to sequences"),
    ({"data__timestamp": ...}, "needs data.timestamp"),
    ({"data__group": ...}, "group_time needs data.group"),
    ({"data__split": {"by": "time", "valid": 0.5, "test": 0.5}}, "must leave rows for train"),
    ({"data__split": {"by": "column"}}, "split.column belongs to split.by: column"),
    ({"data__source": "files"}, "needs the key data.files"),
    ({"data__source": "files", "data__files": {"path": {"train": "a"}}}, "goes with a data.files.path that maps roles"),
    ({"data__source": "files", "data__files": {"path": "a"}, "data__split": {"by": "file"}}, "maps roles"),
    ({"data__source": "files", "data__files": {"path": "a", "format": "csv", "header": False}}, "needs columns"),
    ({"search_embedding__methods": ["pep"]}, "must contain 'uniform'"),
    ({"search_embedding__methods": ["uniform", "pep", "pep"]}, "search_embedding.methods names 'pep' twice"),
    ({"retrain__models": ["esmm", "esmm"]}, "retrain.models names 'esmm' twice"),
    ({"retrain__models": ["esmm", "mmoe-pcgrad"], "retrain__loss_weights": {"like": 2.0}},
     "only MODEL-fixed and MODEL-decay read them"),
    ({"retrain__models": ["mmoe-fixed"]}, "MODEL-fixed needs loss_weights"),
    ({"retrain__models": ["mmoe-decay"]}, "MODEL-decay needs balancers.decay.factors"),
    ({"retrain__history": "din", "data__fields": [{"name": "item_id", "kind": "categorical"}]},
     "retrain.history = 'din' needs a sequence `of` a field"),
    ({"search_interaction__methods": ["autofis"]}, "must contain 'all_pairs'"),
    ({"search_interaction__autogroup": {"groups": [4, 8], "dims": [8, 8]}}, "one width per order from 2 on"),
    ({"search_interaction__autogroup": {"groups": [0, 0], "dims": [8]}}, "groups needs a number above 0"),
    ({"training__embedding_dim": 8}, "must not exceed training.embedding_dim"),
    ({"validate__psi": [0.25, 0.1]}, "psi = [0.25, 0.1]: the first must not exceed the second"),
    ({"validate__positive_rate": [0.9, 0.1]}, "the first must not exceed the second"),
])
def test_keys_that_contradict_one_another(changes: dict[str, Any], says: str) -> None:
    assert says in refused(**changes)


@pytest.mark.parametrize("text", ["data: [", "\x00", "!!python/object/apply:os.getcwd []"])
def test_file_that_is_not_plain_yaml(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(InputError, match="not readable as YAML"):
        config.load(tmp_path / "params.yaml")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params.yaml"):
        config.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda p: p.stem)
def test_shipped_params_are_accepted_and_complete(path: Path) -> None:
    config.load(path)
    assert set(yaml.safe_load(path.read_text())) == set(yaml.safe_load((ROOT / "params.yaml").read_text()))


def test_form_in_the_repository_is_that_of_the_models() -> None:
    assert json.loads((ROOT / "dags" / "form.json").read_text()) == json.loads(json.dumps(config.form_schema()))


def test_form_values_are_put_in_and_checked() -> None:
    changed = config.apply_form(params(), {"training.epochs": 3, "retrain.models": ["esmm"]}, "form")
    assert changed["training"]["epochs"] == 3 and changed["retrain"]["models"] == ["esmm"]
    for key, value in (("training.epochs", "3; rm -rf /"), ("data.files.path", "/etc"), ("retrain.models", ["x"])):
        with pytest.raises(InputError):
            config.apply_form(params(), {key: value}, "form")


@pytest.mark.parametrize("balancer", ["", "-pcgrad"])
def test_models_that_need_what_is_not_given_are_refused_before_anything_runs(balancer: str) -> None:
    youtube, esm2 = [f"youtube{balancer}"], [f"esm2{balancer}"]
    assert "set data.position" in refused(retrain__models=youtube, data__position=None)
    field = params()["data"]["fields"][0]["name"]
    assert "take the field out" in refused(retrain__models=youtube, data__position=field)
    assert "take the field out" in refused(retrain__models=youtube, data__position="place",
                                           data__fields__2__value="place")
    for action in (None, "basket"):
        line = refused(retrain__models=esm2, retrain__esm2__action=action)
        assert f"retrain.esm2.action = {action!r}" in line and "use one of" in line


def test_a_history_may_be_collected_where_the_label_was_positive_before() -> None:
    """MovieLens does so: earlier rows' labels are known when serving, the row's own is not."""
    raw = params()
    assert raw["data"]["fields"][8]["build"]["where"] == raw["data"]["objectives"][0]["label"]
    config.parse(raw, "params.yaml")
