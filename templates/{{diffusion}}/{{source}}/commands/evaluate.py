"""`evaluate`: how good and how honest the images of a checkpoint are."""

from typing import Annotated

from ..config import AS_THE_RUN, Draw
from ..errors import Exit
from ..run_config import Bounds


def evaluate(
    *,
    draw: Draw = AS_THE_RUN,
    run_dir: str = "runs/demo",
    images: Annotated[int | None, Bounds(least=2)] = None,
    probes: Annotated[int, Bounds(least=0)] = 1,
    features: str = "",
    to: str = "",
) -> int:
    """Judge images of a checkpoint, beside real images (floor) and a Gaussian a class (baseline).

    Args:
        run_dir: the folder of the run
        images: how many are drawn; none = as the run's settings say
        probes: of the likelihood's divergence, unbiased; 0 = exact, one for each number of an image
        features: a .safetensors file of Inception-v3 (FID) or DINOv2 (FD-DINOv2)
        to: a JSON file for the figures
    """
    import json

    from ..panel import judge
    from ..records import store
    from ..records.report import format_summary
    from ..runtime.start import start
    from ..trained import open_run

    start()
    run = open_run(run_dir, draw)
    count = images or run.learner.config.sample.images
    splits = run.split("train"), run.split("heldout")
    found = {"step": run.step} | judge(run, *splits, count, probes=probes, features=features)
    print(format_summary(found))
    if to:
        store.write(store.place(to), json.dumps(found, indent=1))
    return Exit.DONE
