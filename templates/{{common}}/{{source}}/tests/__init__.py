"""Tests stand inside the package so that they import it relatively; the wheel leaves them out."""

import beartype

# As Python's typing has it, an int will do where a float is asked for.
typecheck = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
