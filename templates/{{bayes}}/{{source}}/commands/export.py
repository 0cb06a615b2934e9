"""`export`: a fit as one netCDF file."""

from ..errors import Exit


def export(*, to: str, run_dir: str = "runs/demo") -> Exit:
    """Write draws, statistics, replicates, log likelihood and data as netCDF, which ArviZ reads.

    Args:
        to: the file to write, such as fit.nc; `outputs` in the run folder holds the same as Zarr
        run_dir: the folder of a finished fit
    """
    import json

    from ..fitted import open_fit
    from ..records import store

    path, tree = store.on_disk(to), open_fit(run_dir).tree.load()
    for node in tree.subtree:  # netCDF holds no tables of names
        plain = {n: json.dumps(v) if isinstance(v, dict) else v for n, v in node.attrs.items()}
        node.attrs = plain
    store.write(path, lambda file: file.write(tree.to_netcdf(engine="h5netcdf")))
    print(f"{to}: {', '.join(tree.children)}")
    return Exit.DONE
