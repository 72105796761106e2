"""The measured peer of control-id: SASRec (Kang and McAuley, 2018) of RecTools, on the same training sequences and targets.

    make peer-sasrec        # an environment of its own, .venv-peers; docs/results/peer-sasrec-DATASET.json

RecTools 0.19 declares a numpy older than ours; it runs with ours. It trains its own way (full softmax and Adam, the last
`session_max_len` items of every user, one window each), but for padding, whose scores it would compute and not use; the
setting and the epoch are those that are best on validation, the former by the first seed, as control-id's were: the length,
then dropout and learning rate in a grid. On a large dataset `--setting-of` takes what was best on a sample of its users. Both
are ranked by our evaluator; what RecTools has never seen in training comes last. What was trained is kept in
FOLDER/peer-sasrec.json after every run; the same command goes on with what is lacking.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
import torch.nn.functional as F
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from torch import Tensor

from benchmark.environment import environment
from distill.catalogue_loss import cross_entropy
from distill.device import device
from distill.evaluation import kept_ranks
from foundation import console
from foundation.artifact import load, write_atomically
from recommender.config import StudentSection
from recommender.data import load_dataset
from recommender.evaluate import evaluate
from recommender.metrics import bootstrap_ci, ndcg, paired_relative_difference, summary
from recommender.split import Sequences, build_sequences
from recommender.torch_ranking import top_k

LENGTHS, DROPOUTS, RATES = (20, 50, 200), (0.2, 0.4), (1e-3, 2e-3)
UNKNOWN = -1e9
Setting = dict[str, Any]


class PeerRecommender:
    """RecTools' network over our item indices."""

    def __init__(self, trained: lightning.LightningModule, length: int, num_items: int) -> None:
        self.network, self.length = trained.torch_model.eval(), length
        internal_I = np.zeros(num_items + 1, np.int64)
        internal_I[trained.item_external_ids[1:].astype(int)] = np.arange(1, len(trained.item_external_ids))  # 0 is padding
        self.internal_I = torch.from_numpy(internal_I).to(trained.device)
        self.lacks_I = self.internal_I == 0
        with torch.no_grad():
            self.table = self.network.item_model.get_all_embeddings()

    @torch.no_grad()
    def recommend(self, history_BL: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        history = torch.from_numpy(history_BL).to(self.table.device)
        known = self.internal_I[history]
        known = known.gather(1, (known > 0).int().argsort(dim=1, stable=True))[:, -self.length :]  # what it knows, behind
        session = F.pad(known, (self.length - known.shape[1], 0))
        hidden = self.network.encode_sessions({"x": session}, self.table)[:, -1]
        score_BI = (hidden @ self.table.T)[:, self.internal_I].masked_fill(self.lacks_I, UNKNOWN)
        return top_k(score_BI, history, k)


class WithoutPadding(TransformerLightningModule):
    """RecTools' softmax loss, of the positions that have a target: the same number, no scores of padding, a chunk at a time."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        has_target_BL, network = batch["y"] != 0, self.torch_model
        table = network.item_model.get_all_embeddings()
        hidden_NZ = network.encode_sessions(batch, table)[has_target_BL]
        return cross_entropy(hidden_NZ / self.logits_t, table, batch["y"][has_target_BL])


class KeepBest(lightning.Callback):
    """Validation after every epoch, by our evaluator; the weights of the best are kept."""

    sequences: Sequences  # of this process: RecTools copies a callback, and wants what it is told of one to be JSON

    def __init__(self, length: int, patience: int) -> None:
        self.length, self.patience, self.curve = length, patience, list[float]()
        self.best: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        recommender = PeerRecommender(pl_module, self.length, self.sequences.num_items)
        rank_U = evaluate(recommender, self.sequences, "validation")
        score = float(ndcg(rank_U, 10).mean())
        if score > max(self.curve, default=-1.0):
            self.best = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.curve.append(score)
        console.say(f"epoch {len(self.curve)}: validation NDCG@10 {score:.5f}")
        trainer.should_stop = len(self.curve) - 1 - int(np.argmax(self.curve)) >= self.patience
        pl_module.train()


def quiet_trainer(epochs: int, length: int, patience: int) -> lightning.Trainer:
    """RecTools asks for a function that can be imported by its name."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=epochs, callbacks=[KeepBest(length, patience)], deterministic=True, **quiet)


def train(
    sequences: Sequences, section: StudentSection, epochs: int, patience: int, seed: int, **setting: Any
) -> tuple[PeerRecommender, list[float]]:
    """RecTools' SASRec of control-id's width and depth, at its best epoch, and its validation NDCG@10 after each."""
    rows = [(u, int(item), n) for u in range(sequences.num_users) for n, item in enumerate(sequences.train(u))]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    table["datetime"], table["weight"] = pd.to_datetime(table["datetime"], unit="D"), 1.0
    lightning.seed_everything(seed, verbose=False)
    length = setting["session_max_len"]
    model = SASRecModel(
        n_blocks=section.num_layers,
        n_heads=section.num_heads,
        n_factors=section.hidden_size,
        deterministic=True,
        epochs=epochs,
        lightning_module_type=WithoutPadding,
        get_trainer_func=quiet_trainer,
        get_trainer_func_kwargs={"epochs": epochs, "length": length, "patience": patience},
        **setting,
    )
    model.fit(Dataset.construct(table))
    model.lightning_model.to(device())
    keep = next(callback for callback in model.fit_trainer.callbacks if isinstance(callback, KeepBest))
    model.lightning_model.load_state_dict(keep.best)
    return PeerRecommender(model.lightning_model, length, sequences.num_items), keep.curve


def lengths(sequences: Sequences) -> list[int]:
    """Of those to be tried the ones that are shorter than the longest history, and the next."""
    longest = max(len(sequences.train(u)) for u in range(sequences.num_users))
    return [length for length, shorter in zip(LENGTHS, (0, *LENGTHS), strict=False) if shorter < longest]


def search(score: Callable[[Setting], float], lengths: list[int], batch_size: int) -> Setting:
    """The setting of the highest score: the length at the first dropout and learning rate, then these in a grid."""
    first = {"dropout_rate": DROPOUTS[0], "lr": RATES[0], "batch_size": batch_size}
    best = max(({**first, "session_max_len": length} for length in lengths), key=score)
    grid = itertools.product(DROPOUTS, RATES)
    return max(({**best, "dropout_rate": dropout, "lr": rate} for dropout, rate in grid), key=score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="runs/DATASET, where `make distill` has trained control-id")
    parser.add_argument("--epochs", type=int, default=200, help="at most")
    parser.add_argument("--patience", type=int, default=10, help="epochs without a better validation NDCG@10 before stopping")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--setting-of", type=Path, metavar="FILE", help="a result of this command: its setting, not searched again"
    )
    arguments = parser.parse_args()
    sequences = build_sequences(load_dataset(load(arguments.folder / "data", "dataset")))
    controls = [load(path, "control-id") for path in sorted(arguments.folder.glob("seed-*/control-id"))]
    KeepBest.sequences = sequences
    section = StudentSection.model_validate(controls[0].recipe["student"])
    seeds = [control.manifest["seed"] for control in controls]
    machine, kept_file = environment(torch.get_num_threads()), arguments.folder / "peer-sasrec.json"
    options = {name: getattr(arguments, name) for name in ("epochs", "patience", "batch_size")}
    about = {
        "targets_sha256": sequences.targets_sha256(),
        "controls": [control.digest for control in controls],
        **options,
        "hardware": f"{machine['num_cpus']} cores, {machine['cpu']}, {machine['gpu'] or 'no GPU'}",
    }
    ledger = json.loads(kept_file.read_text()) if kept_file.exists() else {**about, "curves": {}, "ranks": {}}
    if different := [name for name, value in about.items() if ledger[name] != value]:
        parser.error(f"{kept_file} holds what was trained with another {different[0]}; move it away to begin anew")
    curves, ranks = ledger["curves"], ledger["ranks"]  # by setting and seed

    def trained(setting: dict[str, Any], seed: int) -> str:
        """Train what is not there yet; the name it is kept by."""
        name = f"{json.dumps(setting, sort_keys=True)}, seed {seed}"
        if name not in curves:
            recommender, curves[name] = train(sequences, section, arguments.epochs, arguments.patience, seed, **setting)
            ranks[name] = evaluate(recommender, sequences, "test").tolist()
            write_atomically(kept_file, json.dumps(ledger).encode())
            console.say(f"{name}: validation NDCG@10 {max(curves[name]):.5f} after {int(np.argmax(curves[name])) + 1} epochs")
        return name

    if arguments.setting_of:
        best = json.loads(arguments.setting_of.read_text())["rows"]["rectools-sasrec"]["setting"]
    else:
        best = search(lambda setting: max(curves[trained(setting, seeds[0])]), lengths(sequences), arguments.batch_size)
    rank_SU = np.array([ranks[trained(best, seed)] for seed in seeds])
    own_U = np.mean([ndcg(kept_ranks(control, "test"), 10) for control in controls], axis=0)
    peer_U = ndcg(rank_SU, 10).mean(axis=0)
    rows = {
        "control-id": {"ndcg_at_10": float(own_U.mean()), "ci95": list(bootstrap_ci(own_U))},
        "rectools-sasrec": {
            "setting": best,
            "ndcg_at_10": float(peer_U.mean()),
            "ci95": list(bootstrap_ci(peer_U)),
            "of_seeds": [summary(rank_U) for rank_U in rank_SU],
        },
        "control-id over rectools-sasrec": paired_relative_difference(own_U, peer_U),
    }
    tried = {
        name: {"best_epoch": int(np.argmax(curve)) + 1, "validation_ndcg_at_10": max(curve)} for name, curve in curves.items()
    }
    command = ["python tools/peer_sasrec.py", f"runs/{arguments.folder.name}"]
    command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command += ["--setting-of", str(arguments.setting_of)] if arguments.setting_of else []
    found = about | {"command": " ".join(command), "date": time.strftime("%Y-%m-%d", time.gmtime()), "seeds": seeds}
    found |= {"tried": tried, "rows": rows}
    out = Path(f"docs/results/peer-sasrec-{arguments.folder.name}.json")
    write_atomically(out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    console.result({"path": str(out), **found})


if __name__ == "__main__":
    main()
