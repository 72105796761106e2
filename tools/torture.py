"""`make torture`: kill, damage and feed nonsense to everything, for as long as it takes.

The ledger is docs/results/torture.json.

    storm      the whole chain (distill, quantize, export) killed at random moments, again and again, until it has come through;
               then compared, artefact by artefact, with one that was left in peace
    stages     every stage killed before each of its file operations in turn (rename, replace, fsync, mkdir, unlink, rmtree)
    bench      the benchmark, which has child processes, killed at random moments
    mutants    artefacts of every kind damaged, half of them with recomputed digests, each opened and used in a child process
    cases      the hypothesis properties of tests/test_fuzz.py
    memory     the chain under limits of address space, from too little to enough
    disk       the chain on disks from too small to large enough

Processes are forked from one that has imported everything, so that a run of the chain takes seconds. Kills are SIGKILL, and
now and then SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):  # one thread: a fork copies no other
    os.environ[name] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmark.environment import environment  # noqa: E402
from foundation.recipe import slug  # noqa: E402
from tests.faults import forge, killed_before  # noqa: E402
from tools.mutants import Outcome, mutate, open_and_use  # noqa: E402

LEDGER = Path("docs/results/torture.json")
RECIPE = "recipes/smoke.toml"
SMALL = ["teacher.optim.epochs=2", "student.optim.epochs=2", "benchmark.num_threads=1", "num_threads=1"]
SMALL += ["teacher.optim.checkpoint_every_s=0.2", "student.optim.checkpoint_every_s=0.2", "export.parity_histories=20"]
NOT_REPRODUCIBLE = "student-trt"  # TensorRT-RTX 1.7 gives other bytes from build to build, disturbed or not
PRELOADED = ("torch.onnx", "onnxscript", "onnxruntime.quantization", "peft", "bitsandbytes", "tensorrt_rtx", "recdistill.cli")
PRELOADED += ("recdistill.pipeline", "benchmark.report", "benchmark.variants", "distill.audit", "distill.train_teacher")
PRELOADED += ("distill.train_student", "quantize.graph", "quantize.llm", "export.onnx_graph", "export.tensorrt_engine")
PRELOADED += ("export.append", "export.openvino_ir", "export.text_encoder", "export.triton", "openvino", "tritonclient.grpc")
NEW_ITEMS, APPENDED = "{work}/new-items.parquet", "{runs}/chain/appended"
CHAIN = (
    ["distill"],
    ["quantize"],
    ["export", "tensorrt"],
    ["export", "openvino"],
    ["export", "triton"],
    ["export", "text-encoder"],
    ["export", "append", NEW_ITEMS, APPENDED],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of the storm; a fifth as many of the benchmark")
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(PHASES), default=list(PHASES), help="run these phases")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        forked(lambda: _write_sources(work))
        preload()
        hardware = environment(1)
        for phase in arguments.only:
            say(f"{phase} …")
            started = time.monotonic()
            found = PHASES[phase](work, arguments)
            ledger = (json.loads(LEDGER.read_text()) if LEDGER.exists() else {}) | found
            run = {
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "command": " ".join(["python", *sys.argv]),
                "seed": arguments.seed,
                "hardware": f"{hardware['num_cpus']} cores, {hardware['cpu']}",
            }
            runs = ledger.get("runs", {}) | {phase: run | {"seconds": round(time.monotonic() - started)}}
            ledger |= run | {"runs": runs}
            told = json.dumps(ledger, indent=1, sort_keys=True).replace(str(work), "RUNS").replace(slug(str(work)), "RUNS")
            LEDGER.write_text(told + "\n")
            say(json.dumps({key: value for key, value in ledger.items() if not isinstance(value, dict | list)}))


def _write_sources(work: Path) -> None:
    import polars as pl

    from tests.constructed import write_chain_dataset, write_tiny_llm

    write_chain_dataset(work / "chain", num_users=60)
    write_tiny_llm(work / "tiny-llm", num_layers=1)
    pl.DataFrame({"item_id": ["n1", "n2"], "title": ["thing 12", "thing 71"]}).write_parquet(NEW_ITEMS.format(work=work))


def preload() -> None:
    """Import what the chain needs, without starting a thread."""
    for module in PRELOADED:
        importlib.import_module(module)


# --- processes


def forked(run: Callable[[], Any], limit_s: float = 600.0, limit_bytes: int = 0) -> tuple[int, str]:
    """(exit code, or minus the signal, what it said): run in a child process; -SIGALRM if it took longer than `limit_s`."""

    def limited() -> Any:
        signal.alarm(int(limit_s) + 1)
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        return run()

    with tempfile.TemporaryFile() as log:
        code = os.waitstatus_to_exitcode(os.waitpid(_start(limited, log.fileno()), 0)[1])
        log.seek(0)
        return code, log.read().decode("utf-8", "replace")


def _start(run: Callable[[], Any], log: int) -> int:
    """Fork a process that runs `run`, says everything into `log` and exits with the returned code."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
        code = run()
        os._exit(code if isinstance(code, int) else 0)
    except BaseException as error:
        print(f"UNNAMED {type(error).__name__}: {error}", flush=True)
        os._exit(70)


def chain(work: Path, runs: Path, stages: tuple[list[str], ...] = CHAIN) -> int:
    """Run `stages` by the command line's own entry; the first exit code that is not 0."""
    from recdistill.cli import main as recdistill

    options = ["--recipe", RECIPE, "--data", str(work / "chain"), "--teacher", str(work / "tiny-llm"), "--runs", str(runs)]
    options += [word for override in SMALL for word in ("--set", override)]
    whole = [[word.format(work=work, runs=runs) for word in stage] for stage in stages]
    try:
        return next((code for stage in whole if (code := recdistill([*stage, *options]))), 0)
    except KeyboardInterrupt:  # between two commands, of which each names its own
        return 128 + signal.SIGINT


def watched_chain(work: Path, runs: Path) -> int:
    """The chain in a process that is watched over, as the command is."""
    from recdistill.supervisor import supervised

    return supervised(lambda: chain(work, runs), "the same command goes on")


def killed_after(seconds: float, number: int, run: Callable[[], Any]) -> bool:
    """Whether the process had to be killed (by signal `number`) because it was not through after `seconds`."""
    with tempfile.TemporaryFile() as log:
        child, deadline = _start(run, log.fileno()), time.monotonic() + seconds
        ended = (0, 0)
        while not ended[0] and time.monotonic() < deadline:
            time.sleep(0.002)
            ended = os.waitpid(child, os.WNOHANG)
        if not ended[0]:
            os.kill(child, number)
            ended = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(ended[1])
        log.seek(0)
        assert code in (0, -number, 128 + number), f"exit code {code}: {log.read().decode('utf-8', 'replace')[-2000:]}"
        return code != 0


# --- what is on disk


def artefacts(runs: Path) -> dict[str, str]:
    """Name -> digest of every artefact under its final name, each verified; raises if one is not whole."""
    from foundation import artifact

    artifact._verified.clear()
    found = {}
    for manifest in sorted(runs.rglob("manifest.json")):
        if not any(part.startswith(".") for part in manifest.relative_to(runs).parts):
            loaded = artifact.load(manifest.parent)
            loaded.verify()
            found[str(manifest.parent.relative_to(runs))] = loaded.digest
    return found


def _same(found: dict[str, str], expected: dict[str, str], name: str) -> bool:
    return name in found and (found[name] == expected[name] or name.endswith(NOT_REPRODUCIBLE))


def leftovers(runs: Path) -> list[str]:
    return [str(path) for path in runs.rglob(".*")]


def peaceful(work: Path) -> dict[str, str]:
    """The chain as it ends when nothing disturbs it; kept in `work/peace`."""
    if not (work / "peace").exists():
        code, said = forked(lambda: chain(work, work / "peace"))
        assert code == 0, said[-3000:]
    return in_child(lambda: artefacts(work / "peace"))


def in_child(run: Callable[[], Any]) -> Any:
    """The (JSON) result of a function run in a child process: libraries with threads stay out of the one that forks."""
    with tempfile.NamedTemporaryFile("w+") as file:
        code, said = forked(lambda: Path(file.name).write_text(json.dumps(run())) and 0)
        assert code == 0, said[-3000:]
        return json.loads(Path(file.name).read_text())


# --- phases


def storm(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Killed at random moments, over and over, until it is through; then begun anew."""
    rng, expected = random.Random(arguments.seed), peaceful(work)
    started = time.monotonic()
    forked(lambda: chain(work, work / "timed"))
    whole_s = time.monotonic() - started
    kills, signals, rounds, equal, corrupt, left, unequal = 0, Counter(), 0, 0, 0, 0, []
    while kills < arguments.kills:
        runs, killed = work / f"storm-{rounds}", True
        while killed:
            number = rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (8, 1, 1))[0]
            # Mostly soon, so that every part of the chain is met; at times late, so that it gets on.
            patience_s = rng.uniform(0, whole_s * rng.choice((0.05, 0.1, 0.3, 1.0)))
            killed = killed_after(patience_s, number, lambda r=runs: chain(work, r))
            if killed:
                kills, signals[number.name] = kills + 1, signals[number.name] + 1
                try:
                    found = in_child(lambda r=runs: artefacts(r))
                    corrupt += not all(_same(found, expected, name) for name in found)
                except AssertionError as error:
                    say(f"CORRUPT after kill {kills}: {error}")
                    corrupt += 1
        rounds += 1
        found = in_child(lambda r=runs: artefacts(r))
        wrong = [name for name in expected if not _same(found, expected, name)]
        equal += not wrong and len(found) == len(expected)
        unequal += [f"chain {rounds}: {name}" for name in wrong]
        left += len(leftovers(runs))
        shutil.rmtree(runs)
        say(f"{kills} kills, {rounds} chains, {equal} equal, {corrupt} corrupt, {left} leftovers {unequal}")
    return {
        "kills": kills,
        "signals": dict(signals),
        "chains": rounds,
        "resumed_equal": equal,
        "unequal": unequal,
        "corrupt": corrupt,
        "leftovers": left,
    }


def stages(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Each stage alone, its inputs made, killed before each of its file operations; then run again and compared."""
    expected = peaceful(work)
    runs, counts, wrong = work / "stages", Counter(), []
    for name in expected:
        for number in range(1, 10_000):
            shutil.rmtree(runs, ignore_errors=True)
            shutil.copytree(work / "peace", runs, copy_function=os.link)
            shutil.rmtree(runs / name)
            stage = _stage_of(name)
            killed = killed_before(number, lambda s=stage: chain(work, runs, s))
            again, said = forked(lambda s=stage: chain(work, runs, s))
            found = in_child(lambda: artefacts(runs))
            if again or not _same(found, expected, name) or leftovers(runs):
                wrong.append(f"{name} before operation {number}: {said[-300:]}")
            if not killed:
                break
            counts[name] += 1
        say(f"{name}: {counts[name]} operations, {len(wrong)} wrong")
    shutil.rmtree(work / "stages", ignore_errors=True)
    return {"operation_kills": sum(counts.values()), "operation_kills_by_stage": dict(counts), "operation_kills_wrong": wrong}


def _stage_of(name: str) -> tuple[list[str], ...]:
    """The shortest command that makes the artefact `name` (relative to the runs folder)."""
    last = name.split("/", 1)[-1].split("/", 1)[-1]
    if last in ("data",):
        return (["data"],)
    if last.startswith("onnx"):
        return (["export", "onnx"],)
    if last.startswith(("student-int", "teacher-")):
        return (["quantize"],)
    if last == "appended":
        return (CHAIN[-1],)
    for made, target in (("student-trt", "tensorrt"), ("student-openvino", "openvino"), ("student-triton", "triton")):
        if last == made:
            return (["export", target],)
    if last == "text-encoder":
        return (["export", "text-encoder"],)
    return (["distill"],)


def bench(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The benchmark killed at random moments: no report half-written, no child left running."""
    rng, kills, orphans, wrong = random.Random(arguments.seed), 0, 0, 0
    peaceful(work)
    runs = work / "bench"
    shutil.copytree(work / "peace", runs, copy_function=os.link)
    before = in_child(lambda: artefacts(runs))
    for _ in range(max(arguments.kills // 5, 1)):
        killed = killed_after(rng.uniform(0.5, 12.0), signal.SIGKILL, lambda: chain(work, runs, (["bench"],)))
        kills += killed
        time.sleep(1.0)
        orphans += subprocess.run(["pgrep", "-f", f"benchmark.worker {runs}"], capture_output=True).returncode == 0
        found = in_child(lambda: artefacts(runs))  # whole, the graphs of the controls among them, which the benchmark adds
        wrong += any(found.get(name) != digest for name, digest in before.items())
    code, said = forked(lambda: chain(work, runs, (["bench"],)), limit_s=1200)
    assert code == 0, said[-3000:]
    return {
        "bench_kills": kills,
        "bench_orphans": orphans,
        "bench_wrong": wrong,
        "bench_leftovers": len(leftovers(runs)),
    }


def mutants(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Damaged artefacts, half with recomputed digests; each is opened, and used if that succeeds, in a child process.

    The process that starts those children is a child itself, a new one for every batch: what ends it is a dead parent.
    """
    originals = [work / "peace" / name for name in peaceful(work) if not name.endswith(("student-trt", "audit"))]
    forked(lambda: _make_own_llm(work))
    originals.append(work / "llm-own")
    outcomes, strange, deaths, number = Counter(), [], 0, 0
    while number < arguments.mutants and deaths < 10:
        size = min(_BATCH, arguments.mutants - number)
        file = work / "batch.json"
        file.unlink(missing_ok=True)
        seed = f"{arguments.seed}-{number}-{deaths}"
        code, said = forked(lambda s=seed, n=size: _mutant_batch(originals, work, s, n), limit_s=_BATCH * 40)
        if code:
            deaths += 1
            say(f"DEAD PARENT {code}: {said[-500:]}")
            continue
        batch = json.loads(file.read_text())
        number += size
        outcomes.update(batch["outcomes"])
        strange += batch["strange"]
        for line in batch["strange"]:
            say(f"STRANGE {line}")
        say(f"{number} mutants: {dict(outcomes)}")
    return {
        "mutants_loaded": number,
        "mutant_outcomes": dict(outcomes),
        "silent_loads": outcomes[f"as damaged: {Outcome.OPENED.value}"],
        "parent_crashes": deaths,
        "child_crashes": sum(count for outcome, count in outcomes.items() if outcome.endswith(Outcome.CRASH.value)),
        "mutants_strange": strange[:50],
        "mutants_strange_count": len(strange),
    }


_BATCH = 500


def _make_own_llm(work: Path) -> None:
    """An LLM artefact that holds its weights, as one dequantized from a GGUF does."""
    from foundation.artifact import Draft, make

    def build(draft: Draft) -> None:
        shutil.copytree(work / "tiny-llm", draft.path / "weights")
        (draft.path / "source.json").write_text(json.dumps({"name": "tiny", "precision": "as stored"}))

    make(work / "llm-own", "llm", recipe={}, inputs={}, build=build)


def _mutant_batch(originals: list[Path], work: Path, seed: str, size: int) -> int:
    """Damage and open `size` mutants; what became of them goes to work/batch.json."""
    rng, folder, outcomes, strange, number = random.Random(seed), work / "mutant", Counter(), [], 0
    num_items = json.loads((work / "peace" / "chain" / "data" / "manifest.json").read_text())["metrics"]["num_items"]
    while number < size:
        forged, original, seed_one = number % 2 == 1, rng.choice(originals), rng.random()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        run = lambda s=seed_one, f=forged: _damage_and_open(folder, s, f, num_items)  # noqa: E731
        code, said = forked(run, limit_s=30, limit_bytes=16 << 30)
        change = re.search("^CHANGED (.*)$", said, re.MULTILINE)
        if not change:
            assert code == 0, said[-2000:]
            continue  # the damage found nothing to damage
        number += 1
        outcome = Outcome.of(code, said)
        outcomes[f"{'forged' if forged else 'as damaged'}: {outcome.value}"] += 1
        if outcome in (Outcome.HANG, Outcome.CRASH, Outcome.UNNAMED) or (outcome is Outcome.OPENED and not forged):
            strange.append(f"{original.name}: {change[1]}: {outcome.value} {code}: {said[-300:]}")
    (work / "batch.json").write_text(json.dumps({"outcomes": outcomes, "strange": strange}))
    return 0


def _damage_and_open(folder: Path, seed: float, forged: bool, num_items: int) -> int:
    change = mutate(folder, random.Random(seed))
    if not change:
        return 0
    print(f"CHANGED {change!r}", flush=True)
    if forged:
        # a manifest may be damaged beyond what its author could mend
        with suppress(ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
            forge(folder)
    return open_and_use(folder, num_items)


def cases(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """tests/test_fuzz.py: the quick properties share the number of cases; the slow ones add a few hundred."""
    source = Path("tests/test_fuzz.py").read_text()
    quick, slow = (len(re.findall(rf"^@{mark}$", source, re.MULTILINE)) for mark in ("FUZZ", "SLOW_FUZZ"))
    environment = os.environ | {"RECDISTILL_FUZZ_CASES": str(-(-arguments.cases // quick))}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--timeout=0", f"--hypothesis-seed={arguments.seed}"]
    command += ["--hypothesis-show-statistics", "tests/test_fuzz.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    passing = [int(n) for n in re.findall(r"(\d+) passing, 0 failing", done.stdout)]
    assert len(passing) == quick + slow, done.stdout[-6000:]
    return {"hypothesis_cases": sum(passing), "hypothesis_properties": quick + slow}


def memory(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The chain under limits of address space, from too little to enough: it ends and says why, and then comes through."""
    expected, ends, unnamed = peaceful(work), {}, []
    runs = work / "memory"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for extra in (1 << 20, 16 << 20, 64 << 20, 128 << 20, 256 << 20, 512 << 20):
        code, said = forked(lambda: watched_chain(work, runs), limit_bytes=used + extra)
        ends[f"+{extra >> 20} MiB"] = end = f"{code}: {_last_line(said)}"
        if code and ("f memory" not in end or "Traceback" in said):
            unnamed.append(end)
        in_child(lambda: artefacts(runs) if runs.exists() else {})
    code, said = forked(lambda: chain(work, runs))
    assert code == 0, said[-3000:]
    return {
        "memory_ends": ends,
        "memory_unnamed": unnamed,
        "memory_equal": all(_same(in_child(lambda: artefacts(runs)), expected, name) for name in expected),
    }


def disk(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The chain on ever larger file systems in memory, from too small to enough (needs the right to mount one)."""
    expected, ends, unnamed, mount = peaceful(work), {}, [], work / "mount"
    mount.mkdir()
    for size in ("256k", "1m", "2m", "4m", "8m", "64m"):
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], capture_output=True, text=True)
        if mounted.returncode:
            return {"disk_ends": f"not run: {mounted.stderr.strip()}"}
        try:
            code, said = forked(lambda: watched_chain(work, mount / "runs"))
            ends[size] = end = f"{code}: {_last_line(said)}"
            if code and ("the disk is full" not in end or "Traceback" in said):
                unnamed.append(end)
            found = in_child(lambda: artefacts(mount / "runs"))
            assert all(_same(found, expected, name) for name in found), f"{size}: an artefact is not as it should be"
            subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
            code, said = forked(lambda: chain(work, mount / "runs"))  # after some space was freed
            assert code == 0, said[-3000:]
            found = in_child(lambda: artefacts(mount / "runs"))
            assert all(_same(found, expected, name) for name in expected) and not leftovers(mount / "runs"), size
        finally:
            subprocess.run(["umount", mount], check=True)
    return {"disk_ends": ends, "disk_unnamed": unnamed, "disk_resumed_equal": len(ends)}


def _last_line(said: str) -> str:
    return (said.strip().splitlines() or [""])[-1][:160]


PHASES = {
    "storm": storm,
    "stages": stages,
    "bench": bench,
    "mutants": mutants,
    "cases": cases,
    "memory": memory,
    "disk": disk,
}


def say(message: str) -> None:
    print(f"[torture] {message}", flush=True)


if __name__ == "__main__":
    main()
