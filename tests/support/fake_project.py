"""A project of the real one's shape whose stages take no time: the real DAG and params.yaml, tiny stages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """
stages:
  ingest:
    desc: Write down what the parameters say
    cmd: exec python work.py ingest
    deps: [work.py]
    params: [data.source, training]
    outs: [outputs/ingest]
    meta: {group: data, queue: spark, pool: spark, timeout_minutes: 5}
  search_embedding:
    desc: One result per method
    matrix:
      method: ${search_embedding.methods}
    cmd: exec python work.py search_embedding ${item.method}
    deps: [outputs/ingest, work.py]
    params: [search_embedding.seeds]
    outs: ["outputs/search_embedding/${item.method}", "measurements/search_embedding@${item.method}.json"]
    meta: {group: search, queue: gpu, pool: gpu, timeout_minutes: 5}
  report:
    desc: Everything in one file
    cmd: exec python work.py report
    deps: [outputs/ingest/result.txt, outputs/search_embedding, measurements, work.py]
    outs: [outputs/report]
    meta: {group: decision, queue: default, pool: default_pool, timeout_minutes: 5}
"""

WORK = '''
import json, os, pathlib, sys, time
import yaml
from tasks.runtime.stage import die_with_parent

die_with_parent()
name, *key = sys.argv[1:]
title = "@".join([name, *key])
control = pathlib.Path(os.environ["FAKE_CONTROL"])
with (control / "executed").open("a") as log:
    log.write(title + "\\n")
params = yaml.safe_load(pathlib.Path("params.yaml").read_text())
if params["training"]["epochs"] == 13:
    print(f"{name}: params.yaml: training.epochs = 13: an unlucky number; choose another", file=sys.stderr)
    sys.exit(2)
if (control / f"break {title}").exists():
    (control / f"break {title}").unlink()
    sys.exit("broken once")
out = pathlib.Path("outputs", name, *key)
out.mkdir(parents=True)
(out / "result.txt").write_text(title + " began\\n")
(control / f"pid {title}").write_text(str(os.getpid()))
while (control / f"hold {title}").exists():
    time.sleep(0.02)
reads = {"search_embedding": ["ingest"], "report": ["ingest", "search_embedding"]}.get(name, [])
read = [p.read_text() for stage in reads for p in sorted(pathlib.Path("outputs", stage).rglob("result.txt"))]
(out / "result.txt").write_text(f"{title} epochs={params['training']['epochs']} read={''.join(read)!r}\\n")
if name == "report":
    (out / "report.html").write_text("<p>the report</p>")
if key:
    pathlib.Path("measurements").mkdir(exist_ok=True)
    pathlib.Path("measurements", f"{title}.json").write_text(json.dumps({"wandb": {"url": f"https://w/{title}"}}))
'''


class FakeProject:
    """A Git checkout in ``path``; ``control`` steers its stages and lists which of them were executed."""

    def __init__(self, folder: Path) -> None:
        self.path, self.control = folder / "project", folder / "control"
        self.control.mkdir(parents=True)
        shutil.copytree(ROOT / "dags", self.path / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, self.path / name)
        (self.path / ".dvc").mkdir()
        shutil.copy(ROOT / ".dvc" / "config", self.path / ".dvc" / "config")
        shutil.copy(ROOT / ".dvc" / ".gitignore", self.path / ".dvc" / ".gitignore")
        (self.path / "dvc.yaml").write_text(DVC_YAML)
        (self.path / "work.py").write_text(WORK)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("config", "user.name", "Test")
        self.git("config", "user.email", "test@localhost")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Begin")

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        return subprocess.run(["git", *arguments], cwd=cwd or self.path, check=True, capture_output=True,
                              text=True).stdout.strip()

    def set(self, section: str, key: str, value: object) -> None:
        """Change params.yaml in the working tree, without a commit."""
        path = self.path / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params[section][key] = value
        path.write_text(yaml.safe_dump(params, sort_keys=False))

    def executed(self) -> list[str]:
        """Stages executed since the last call."""
        log = self.control / "executed"
        lines = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines
