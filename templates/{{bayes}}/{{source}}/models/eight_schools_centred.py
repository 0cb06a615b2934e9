"""Eight schools in the plain form: a model that the diagnosis has to refuse.

Where `tau` is near zero, the effects have to be near each other: a funnel, whose neck NUTS does not
enter with steps that suit its mouth. Divergences and a low E-BFMI say so. Betancourt and Girolami
(2015), Hamiltonian Monte Carlo for hierarchical models.
"""

from .eight_schools import COLUMNS, OUTCOME, example
from .eight_schools import centred as model

__all__ = ["COLUMNS", "OUTCOME", "example", "model"]
