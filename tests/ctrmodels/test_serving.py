"""The loader needs neither torch nor ctrmodels, and refuses what the model was not made for in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrmodels.export import export_onnx
from ctrmodels.serving import Scorer
from tests.support.served_models import SCHEMA, build, draw, eager, histories

ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ctrmodels"):
            raise ImportError(f"{name} is not there where models are served")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import numpy as np
from serving import Scorer

rows = dict(np.load(sys.argv[2]))
np.savez(sys.argv[3], **Scorer(sys.argv[1], threads=1).score(rows.pop("ids"), rows.pop("numeric"), rows))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "export"
    export_onnx(build("esmm", "mask"), SCHEMA, folder)
    return folder


@pytest.fixture(scope="module")
def scorer(exported: Path) -> Scorer:
    return Scorer(exported)


def changed(name: str, row: int, column: int, value: float) -> dict[str, np.ndarray]:
    rows = draw(7)
    rows[name][row, column] = value
    return rows


def test_the_folder_serves_without_torch_and_without_ctrmodels(exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **draw(50))
    subprocess.run([sys.executable, "-I", "-c", ALONE, str(exported), str(tmp_path / "rows.npz"),
                    str(tmp_path / "scores.npz")], check=True, cwd=tmp_path)
    with np.load(tmp_path / "scores.npz") as scores:
        for name, expected in eager(build("esmm", "mask"), draw(50)).items():
            np.testing.assert_allclose(scores[name], expected, rtol=1e-5, atol=1e-5)


def test_any_number_of_rows_in_any_memory_order(scorer: Scorer) -> None:
    rows = draw(7)
    whole = scorer.score(rows["ids"], rows["numeric"], histories(rows))
    transposed = {name: np.asfortranarray(values)[::-1] for name, values in rows.items()}
    backwards = scorer.score(transposed["ids"], transposed["numeric"], histories(transposed))
    none = scorer.score(rows["ids"][:0], rows["numeric"][:0], {k: v[:0] for k, v in histories(rows).items()})
    for name, score in whole.items():
        np.testing.assert_allclose(backwards[name][::-1], score, rtol=1e-5)
        assert none[name].shape == (0,)


@pytest.mark.parametrize(("rows", "message"), [
    (changed("ids", 3, 2, 30), r"ids\[3, 2\], field item = 30: must be 0 to 29; use 29 for values that the"),
    (changed("ids", 0, 0, -1), r"ids\[0, 0\], field user = -1: must be 0 to 39; use 39"),
    (changed("seen", 6, 1, 30), r"sequence\.seen\[6, 1\], field seen = 30: must be -1 to 29; use 29"),
    (changed("seen", 6, 1, -2), r"sequence\.seen\[6, 1\], field seen = -2: must be -1 to 29"),
    (changed("numeric", 2, 1, np.nan), r"numeric\[2, 1\], field age = nan: must be finite; 0 stands for a missing"),
    (draw(7) | {"ids": draw(7)["ids"].astype(np.int64)}, r"type of ids = 'int64': .* np\.asarray\(values, np\.int32\)"),
    (draw(7) | {"ids": draw(7)["ids"].tolist()}, r"type of ids = 'list': must be a NumPy array of int32"),
    (draw(7) | {"ids": None}, r"type of ids = 'NoneType': must be a NumPy array of int32"),
    (draw(7) | {"numeric": draw(7)["numeric"].astype(np.float64)}, r"type of numeric = 'float64'"),
    (draw(7) | {"ids": draw(7)["ids"][:, :2]}, r"shape of ids = \(7, 2\): must be \(7, 3\) .* user, price, item"),
    (draw(7) | {"ids": draw(7)["ids"][:, 0]}, r"shape of ids = \(7,\): must be \(7, 3\)"),
    (draw(7) | {"numeric": None}, r"shape of numeric = \(7, 0\): must be \(7, 2\)"),
    (draw(7) | {"tags": draw(6)["tags"]}, r"shape of sequence\.tags = \(6, 3\): must be \(7, 3\) for 7 rows"),
    (draw(7) | {"other": draw(7)["tags"]}, r"input = 'sequence\.other': unknown input; leave it out"),
    ({name: values for name, values in draw(7).items() if name != "tags"},
     r"input = 'sequence\.tags': is not given; .* ids, numeric, sequence\.seen, sequence\.tags"),
])
def test_other_inputs_are_refused_in_one_line(scorer: Scorer, rows: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        scorer.score(rows["ids"], rows["numeric"], histories(rows))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("file", "damage", "message"), [
    ("model.onnx", lambda data: data[: len(data) // 2], r"model\.onnx: sha256 = .*copy the whole folder again"),
    ("model.onnx", None, r"model\.onnx: file = 'FileNotFoundError': absent"),
    ("signature.json", lambda data: data[:50], r"signature\.json: signature = 'JSONDecodeError': .*export the model"),
    ("signature.json", lambda data: b"{}", r"signature\.json: signature = 'KeyError'"),
    ("signature.json", None, r"signature\.json: signature = 'FileNotFoundError'"),
])
def test_a_damaged_folder_is_refused(exported: Path, tmp_path: Path, file: str, damage, message: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    path = folder / file
    data = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(data))
    with pytest.raises(ValueError, match=message):
        Scorer(folder)
