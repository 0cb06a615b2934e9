"""A fit beside its data, for the report: replicates, figures and tables. No sampler enters."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from .contract import Artifact, Section
from .posterior.diagnosis import judge
from .posterior.draws import read_draws
from .posterior.page import images, sections
from .posterior.simulated import simulate, write_groups
from .posterior.table import Prepared
from .run_config import MeshConfig
from .runtime.sharding import make_mesh

type Page = tuple[dict[str, Artifact], dict[str, Section]]


def make_page(
    module: Any, prepared: Prepared, judged: Sequence[str], seed: int
) -> Callable[[Path, int], Page]:
    """Folder of draws, and how many are there -> images and sections of the report.

    It puts what it simulates beside the draws. One process calls it; the newest result is kept.
    """

    @functools.lru_cache(1)
    def page(folder: Path, drawn: int) -> Page:
        if not drawn:
            return {}, {}
        posterior = read_draws(folder)["posterior"].to_dataset().load()
        with jax.set_mesh(make_mesh(MeshConfig(), jax.local_devices()[:1])):
            write_groups(folder, simulate(module, prepared, posterior, seed))
        tree = read_draws(folder)
        worst = [*judge(tree, judged).rows]
        return images(tree, module.OUTCOME, worst), sections(module, prepared, tree)

    return page
