"""MovieLens-100K, taken from the package index: the wheel ``recbole`` carries the data set.

The columns offered are ``user_id``, ``item_id``, ``rating``, ``timestamp`` (Unix seconds), ``age``, ``gender``,
``occupation``, ``zip_code``, ``zip_region`` (first two characters), ``movie_title``, ``release_year`` and
``genres`` (separated by spaces).
"""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ctrmodels.errors import InputError
from tasks.config import Data, Files
from tasks.runtime.manifest import sha256

REQUIREMENT = "recbole==1.2.1"
SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
FOLDER = "recbole/dataset_example/ml-100k"
log = logging.getLogger("ctrmodels")


def prepare(data: Data, scratch: Path, out: Path) -> Files:
    """Write the ratings with their users and items as one parquet file into ``scratch``.

    Raises:
        InputError: the wheel can neither be found nor downloaded, or is not the expected one.
    """
    with zipfile.ZipFile(wheel()) as archive:
        ratings, users, items = (_table(archive, part) for part in ("inter", "user", "item"))
    joined = ratings.join(users, "user_id").join(items.rename_columns({"class": "genres"}), "item_id")
    joined = joined.append_column("zip_region", pc.utf8_slice_codeunits(joined["zip_code"], 0, 2))
    # A join gives rows in any order; these three columns put them into one.
    joined = joined.sort_by([(name, "ascending") for name in ("timestamp", "user_id", "item_id")])
    target = scratch / "movielens-100k" / "ratings.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(joined, target)
    return Files(path=str(target))


def wheel() -> Path:
    """Path of the verified wheel, downloaded by pip when the cache has none.

    The cache is ``~/.cache/ctrmodels`` or the folder that CTRMODELS_CACHE names.

    Raises:
        InputError: as :func:`prepare`.
    """
    cache = Path(os.environ.get("CTRMODELS_CACHE", Path.home() / ".cache" / "ctrmodels"))
    target = cache / WHEEL
    by_hand = f"download it by hand (`pip download --no-deps {REQUIREMENT}`) and put it at {target}"
    if not target.is_file():
        _download(target, by_hand)
    found = sha256(target)
    if found != SHA256:
        raise InputError(target, "sha256", found, f"not the expected file ({SHA256})",
                         f"delete it, then run again or {by_hand}")
    return target


def _download(target: Path, by_hand: str) -> None:
    log.info("downloading MovieLens-100K (inside %s) with pip", REQUIREMENT)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as partial:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
             "--disable-pip-version-check", "--dest", partial, REQUIREMENT],
            capture_output=True, text=True, check=False)
        wheels = sorted(Path(partial).glob("*.whl"))
        if asked.returncode != 0 or len(wheels) != 1:
            said = asked.stderr.strip().splitlines()
            raise InputError("movielens-100k", REQUIREMENT, said[-1] if said else "no file",
                             "pip cannot download it", f"{by_hand}, or choose another data.source")
        wheels[0].replace(target)


def _table(archive: zipfile.ZipFile, part: str) -> pa.Table:
    """One tab-separated table; its header gives each column as ``name:type``."""
    table = pa_csv.read_csv(
        io.BytesIO(archive.read(f"{FOLDER}/ml-100k.{part}")),
        parse_options=pa_csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pa_csv.ConvertOptions(column_types={
            name: pa.string() for name in ("user_id:token", "item_id:token", "zip_code:token",
                                           "release_year:token")}, strings_can_be_null=True, null_values=[""]))
    table = table.rename_columns([name.partition(":")[0] for name in table.column_names])
    if "timestamp" in table.column_names:
        table = table.set_column(table.column_names.index("timestamp"), "timestamp",
                                 table["timestamp"].cast(pa.int64()))
    return table
