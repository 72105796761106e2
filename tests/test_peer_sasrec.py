"""The peer of control-id is asked in our item indices: what its library has renumbered, skipped or never seen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

_LIGHTNING = [".".join(("rectools", "models", "nn", "transformers", "lightning")[: n + 1]) for n in range(5)]
_ELSEWHERE = ("pandas", "pytorch_lightning", "rectools.dataset", *_LIGHTNING)  # in .venv-peers only
NUM_ITEMS, LENGTH = 8, 2
KNOWN = np.array(["PAD", 7, 3, 5], dtype=object)  # by the library's own number


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in _ELSEWHERE:
        module = ModuleType(name)
        module.__dict__.update(Callback=object, LightningModule=object, Trainer=object, Dataset=None, SASRecModel=object)
        module.__dict__.update(TransformerLightningModule=object)
        monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("tools.peer_sasrec")
    sys.modules.pop("tools.peer_sasrec")


class Successor:
    """A network that is sure of the item that the library counts next after the last of a session."""

    def __init__(self) -> None:
        self.item_model, self.sessions = self, list[Tensor]()

    def eval(self) -> Successor:
        return self

    def get_all_embeddings(self) -> Tensor:
        return torch.eye(len(KNOWN))

    def encode_sessions(self, batch: dict[str, Tensor], table: Tensor) -> Tensor:
        self.sessions.append(batch["x"])
        return table[batch["x"] % (len(KNOWN) - 1) + 1]


def test_items_are_ours_again(peer: Any) -> None:
    network = Successor()
    trained = SimpleNamespace(torch_model=network, item_external_ids=KNOWN, device="cpu")
    recommender = peer.PeerRecommender(trained, LENGTH, NUM_ITEMS)
    index_BK, _ = recommender.recommend(np.array([[0, 0, 5, 7], [3, 2, 7, 1], [0, 0, 0, 2]]), 6)
    assert network.sessions[0].tolist() == [[3, 1], [2, 1], [0, 0]], "the last two that it knows, padded before"
    assert index_BK[0].tolist() == [3, 1, 2, 4, 6, 8], (
        "of 7 the next is 3; what it has never seen comes last, lower index first"
    )
    assert index_BK[1].tolist()[:1] == [5] and not {3, 2, 7, 1} & set(index_BK[1].tolist()), "3 would be next, and is seen"
    assert index_BK[2].tolist()[:3] == [7, 3, 5]


def test_a_length_beyond_the_longest_history_is_tried_once(peer: Any) -> None:
    for longest, lengths in ((15, [20]), (20, [20]), (21, [20, 50]), (51, [20, 50, 200]), (400, [20, 50, 200])):
        sequences = SimpleNamespace(num_users=2, train=lambda u, longest=longest: np.arange((3, longest)[u]))
        assert peer.lengths(sequences) == lengths


def test_the_search_takes_the_length_first_and_then_dropout_and_rate(peer: Any) -> None:
    asked = []

    def score(setting: dict[str, Any]) -> float:
        asked.append(setting)
        return setting["dropout_rate"] + 100 * setting["lr"] - abs(setting["session_max_len"] - 50)

    best = peer.search(score, [20, 50, 200], 64)
    assert best == {"session_max_len": 50, "dropout_rate": 0.4, "lr": 2e-3, "batch_size": 64}
    assert [setting["session_max_len"] for setting in asked] == [20, 50, 200] + [50] * 4


@pytest.mark.peers
def test_without_padding_its_loss_and_gradient_are_the_librarys() -> None:
    import pandas as pd
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.transformers.lightning import TransformerLightningModule

    from tools.peer_sasrec import WithoutPadding

    rng = np.random.default_rng(0)
    rows = [(user, item, n) for user in range(12) for n, item in enumerate(rng.permutation(30)[: rng.integers(2, 12)])]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    table["datetime"], table["weight"] = pd.to_datetime(table["datetime"], unit="D"), 1.0
    found = []
    for module in (TransformerLightningModule, WithoutPadding):
        torch.manual_seed(0)
        model = SASRecModel(
            n_blocks=1, n_heads=2, n_factors=8, session_max_len=6, dropout_rate=0.0, epochs=0, lightning_module_type=module
        )
        model.fit(Dataset.construct(table))
        trained = model.lightning_model
        torch.manual_seed(0)
        trained._xavier_normal_init()
        trained.log = lambda *_, **__: None
        batch = next(iter(model.data_preparator.get_dataloader_train()))
        assert (batch["y"] == 0).any()
        loss = trained.training_step(batch, 0)
        loss.backward()
        found.append((loss, {name: weight.grad for name, weight in trained.torch_model.named_parameters()}))
    (loss, gradients), (own_loss, own_gradients) = found
    torch.testing.assert_close(own_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own_gradients[name], gradient, msg=name)
