"""A package of AOTInductor: the graph compiled to machine code, without the Python of PyTorch's eager mode.

It is code, so it is no artefact and nothing here opens one by itself: whoever opens it names the digest he trusts, which
`recdistill export aotinductor` printed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foundation.artifact import ArtifactError, sha256_file
from recommender.ranking import pad_left
from recommender.runtimes.base import CANDIDATES, EXCLUDE, HISTORY, QUERY, GraphRecommender

PACKAGE = "model.pt2"


class AotInductorRecommender(GraphRecommender):
    """A compiled graph on the CPU; histories are padded to the least length it was compiled for."""

    device, precision = "cpu", "fp32"

    def __init__(self, package: Path, sha256: str, num_threads: int = 0) -> None:
        super().__init__(package)
        if (found := sha256_file(package)) != sha256:
            raise ArtifactError(f"{package} has the digest {found}, not {sha256}; it is machine code and is not loaded")
        import torch

        if num_threads:
            torch.set_num_threads(num_threads)
        self.torch = torch
        self.loaded = torch._inductor.aoti_load_package(str(package))
        said = self.loaded.get_metadata()
        self.k, self.min_length = int(said["k"]), int(said["min_length"])
        self.inputs = {name.removeprefix("input."): int(size) for name, size in said.items() if name.startswith("input.")}

    def run(self, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        history_BL = feeds[HISTORY]
        if history_BL.shape[1] < self.min_length:
            history_BL = pad_left(list(history_BL), self.min_length)
        asked = [history_BL, *(feeds.get(name) for name in (EXCLUDE, CANDIDATES, QUERY))]
        with self.torch.inference_mode():
            index_BK, score_BK = self.loaded(*(None if feed is None else self.torch.from_numpy(feed) for feed in asked))
        return index_BK.numpy(), score_BK.numpy()
