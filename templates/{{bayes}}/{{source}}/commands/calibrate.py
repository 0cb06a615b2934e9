"""`calibrate`: whether the sampler finds what the model itself has drawn."""

from typing import Annotated

from ..errors import Exit
from ..run_config import Bounds
from . import Settings


def calibrate(*, config: Settings, simulations: Annotated[int, Bounds(least=8)] = 200) -> int:
    """Draw from the prior, simulate and fit, many times over; exit code 3 if ranks are not uniform.

    The ranks are kept in RUN-DIR/calibration, and the same command goes on with them.

    Args:
        simulations: how many, rounded up to a multiple of 8
    """
    import jax

    from ..calibrated import make_calibration, read_calibration, settings_of
    from ..runtime.agree import from_first
    from ..runtime.distributed import unique
    from ..runtime.loop import run
    from ..runtime.sharding import make_mesh
    from ..runtime.start import start

    fitted, config = config, settings_of(config, simulations)
    start()
    mesh = make_mesh(config.mesh)
    code = run(make_calibration(fitted, config, mesh), config, mesh)
    if code != Exit.DONE:
        return code

    def verdict() -> list:
        found = read_calibration(config)
        return [not found.failed, found.words()]

    is_good, words = from_first(unique("calibration"), verdict)
    if jax.process_index() == 0:
        print(words)
    return Exit.DONE if is_good else Exit.REFUSED
