"""`health`: test the devices and the network of every host of the job. Runs no training step."""

import sys
from typing import Annotated

from ..errors import Exit
from ..run_config import Bounds


def health(*, limit_s: Annotated[float, Bounds(above=0)] = 120.0) -> int:
    """Test every host alone, in pairs and all together; name the one that fails, and exit with 43.

    `health -- train ...` trains after it, in the same processes.

    Args:
        limit_s: how long each of the tests may take, compiling included
    """
    import jax

    from ..cluster.health import check_all
    from ..runtime.distributed import end_together
    from ..runtime.start import start

    start()
    for check in check_all(limit_s):
        if check.failed:
            print(check, file=sys.stderr)
            # A device that hangs would hold up a normal exit.
            end_together(Exit.HUNG, str(check).replace("\n ", ""))
        if jax.process_index() == 0:
            print(check, flush=True)
    if jax.process_index() == 0:
        print(f"sound: {jax.process_count()} processes, {jax.device_count()} devices", flush=True)
    return Exit.DONE
