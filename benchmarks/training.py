"""How fast a whole epoch trains, beside the peers and the machine's own bound, in one run.

    python -m benchmarks.training --peers .venv-peers/bin/python

Contestants take turns, a process each, so that a machine whose speed drifts treats all alike; medians over the
rounds are compared. Every contestant trains on the same rows of the same log for one epoch, at each of some
learning rates, and is scored on the same test rows at the rate that is best for it on the valid rows: speed that
costs AUC does not count. Results go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctrmodels.data.planted import display_log

RESULTS = Path(__file__).parent / "results"
OURS = "benchmarks.contestants.ours"
BOUND = "benchmarks.contestants.bound"
PEERS = {"FuxiCTR": "benchmarks.contestants.fuxictr_loop", "DeepCTR-Torch": "benchmarks.contestants.deepctr_torch_loop",
         "torch-rechub": "benchmarks.contestants.torch_rechub_loop"}
VARIANTS = {"ours": ["--precision", "auto", "--onnx"], "ours fp32": ["--precision", "fp32"]}


@dataclass(frozen=True)
class Setting:
    """A model, the widths of its MLP and the rows per step."""

    model: str
    hidden: str
    batch: int

    @property
    def name(self) -> str:
        """As the tables print it."""
        return f"{self.model} {self.hidden} batch {self.batch}"


SETTINGS = {s.name: s for s in (
    Setting("deepfm", "64-32", 4096), Setting("deepfm", "400-400-400", 4096), Setting("dcnv2", "400-400-400", 4096),
    Setting("deepfm", "64-32", 10_000), Setting("deepfm", "400-400-400", 10_000),
    Setting("dcnv2", "400-400-400", 10_000))}


def run(python: str, module: str, log: Path, setting: Setting, arguments: argparse.Namespace,
        options: list[str]) -> dict[str, Any]:
    """One training in a process of its own."""
    command = [python, "-m", module, "--log", str(log), "--model", setting.model, "--hidden", setting.hidden,
               "--batch", str(setting.batch), "--rows", str(arguments.rows), "--threads", str(arguments.threads),
               "--device", arguments.device, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(log: Path, setting: Setting, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All contestants in turns: name → one result per round."""
    found: dict[str, list[dict[str, Any]]] = {}
    here = {name: (sys.executable, OURS, options) for name, options in VARIANTS.items()}
    there = {name: (arguments.peers, PEERS[name], []) for name in arguments.contestants if arguments.peers}
    for _ in range(arguments.rounds):
        found.setdefault("bound", []).append(run(sys.executable, BOUND, log, setting, arguments, []))
        for rate in arguments.rates:
            for name, (python, module, options) in {**here, **there}.items():
                result = run(python, module, log, setting, arguments, ["--rate", str(rate), *options])
                found.setdefault(name, []).append({"rate": rate, **result})
                print(setting.name, name, found[name][-1], file=sys.stderr, flush=True)
    return found


def median(results: list[dict[str, Any]], key: str) -> float:
    """Median over the rounds."""
    return statistics.median(r[key] for r in results)


def at_best_rate(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those at the learning rate with the best valid AUC."""
    by_rate = {r["rate"]: [o for o in results if o["rate"] == r["rate"]] for r in results}
    return max(by_rate.values(), key=lambda r: median(r, "valid_auc"))


def latency(results: list[dict[str, Any]], name: str) -> str:
    """Milliseconds of 1, 100 and 4,096 rows, as cells."""
    return " | ".join(f"{median(results, f'{name}_ms_{n}'):.3f}" for n in (1, 100, 4096))


def table(setting: Setting, found: dict[str, list[dict[str, Any]]]) -> str:
    """The comparison as Markdown."""
    peers = {n: r for n, r in found.items() if n in PEERS}
    fastest = max((median(r, "samples_per_s") for r in peers.values()), default=float("nan"))
    lines = [f"### {setting.name}", "",
             "| | k samples/s | per CPU-second | / fastest peer | of its bound | peak MiB | rate | test AUC "
             "| ms, 1 row | 100 | 4096 |", "|-|-|-|-|-|-|-|-|-|-|-|"]
    for name, results in found.items():
        if name == "bound":
            continue
        speed = median(results, "samples_per_s")
        bound = {"ours": "bf16", "ours fp32": "fp32"}.get(name)
        share = f"{speed / median(found['bound'], 'samples_per_s_' + bound):.0%}" if bound else ""
        best = at_best_rate(results)
        lines.append(
            f"| {name} | {speed / 1000:.1f} | {median(results, 'samples_per_cpu_s') / 1000:.1f} "
            f"| {speed / fastest:.2f} | {share} | {median(results, 'peak_mb'):.0f} | {best[0]['rate']:g} "
            f"| {median(best, 'auc'):.4f} | {latency(results, 'latency')} |")
    lines += [f"| {label} |{' |' * 7} {latency(found['ours'], key)} |" for label, key in (
        ("ours, exported (ONNX)", "onnx"), ("ours, exported, by its loader", "scorer"))]
    bounds = {d: [median(found["bound"], f"{kind}_{d}") for kind in ("samples_per_s", "gflops")]
              for d in ("fp32", "bf16")}
    bound_line = ", ".join(f"{d}: {speed / 1000:.0f} k samples/s at {rate:.0f} GFLOP/s"
                           for d, (speed, rate) in bounds.items())
    return "\n".join([*lines, "", f"Bound of this machine: {bound_line}.", ""])


def main() -> None:
    """Generate, measure in turns, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="Python of the environment that benchmarks/peers.txt describes")
    parser.add_argument("--contestants", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS)[:3])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--name", default="training", help="of the files in benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        display_log(0, arguments.rows).save(log)
        found = {name: measure(log, SETTINGS[name], arguments) for name in arguments.settings}
    text = "\n".join(table(SETTINGS[name], results) for name, results in found.items())
    print(text)
    RESULTS.mkdir(exist_ok=True)
    machine = {"processor": processor(arguments.device), "threads": arguments.threads,
               "python": platform.python_version()}
    (RESULTS / f"{arguments.name}.json").write_text(json.dumps(
        {"machine": machine, "rows": arguments.rows, "results": found}, indent=1) + "\n")
    (RESULTS / f"{arguments.name}.md").write_text(
        f"{arguments.rows:,} rows, one epoch, {arguments.threads} threads, {machine['processor']}, "
        f"median of {arguments.rounds} rounds.\n\n{text}")


def processor(device: str) -> str:
    """The name of what trains."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
