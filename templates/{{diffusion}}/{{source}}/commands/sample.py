"""`sample`: images from a checkpoint."""

from typing import Annotated

from ..config import AS_THE_RUN, Draw
from ..errors import Exit
from ..run_config import Bounds

COLUMNS = 10  # of the picture


def sample(
    *,
    draw: Draw = AS_THE_RUN,
    run_dir: str = "runs/demo",
    to: str = "samples",
    count: Annotated[int, Bounds(above=0)] = 64,
    classes: tuple[int, ...] = (),
    seed: Annotated[int, Bounds(least=0, most=2**32 - 1)] = 0,
) -> int:
    """Draw images with a checkpoint, the newest if no other is named.

    Args:
        run_dir: the folder of the run
        to: the folder to write: images.npz with `images` and `labels`, images.png of the first 100
        count: how many images
        classes: of the images, repeated; none given = all classes in turn
        seed: the same seed draws the same images, on any number of devices
    """
    import numpy as np
    from PIL import Image

    from ..images.pictures import grid
    from ..images.pixels import to_network
    from ..records import store
    from ..runtime.start import start
    from ..trained import open_run

    start()
    folder = store.on_disk(to)
    run = open_run(run_dir, draw)
    labels = run.labels(count, classes)
    pixels = run.pixels(labels, seed)
    store.write(
        folder / "images.npz", lambda f: np.savez_compressed(f, images=pixels, labels=labels)
    )
    shown = np.asarray(to_network(pixels[: COLUMNS**2], run.learner.kind.levels))
    picture = Image.fromarray(grid(shown, COLUMNS))
    store.write(folder / "images.png", lambda file: picture.save(file, "PNG"))
    print(f"{to}: {count} images of step {run.step}, {run.about}")
    return Exit.DONE
