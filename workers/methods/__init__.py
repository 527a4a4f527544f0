"""The methods: what each half computes and how the results become an update, apart from any communication.

Read base first, then sgd, sam and sampa. A method is a frozen model of its settings whose ``step`` is a
generator: it yields rounds of halves and receives their gradients, so the same code runs serially in a
test and on pairs of actors. To add one, write its file and name it here.
"""

from typing import Annotated

from pydantic import Field

from .base import Method
from .sam import Sam
from .sampa import Sampa
from .sgd import Sgd

AnyMethod = Annotated[Sgd | Sam | Sampa, Field(discriminator="name")]

__all__ = ["AnyMethod", "Method", "Sam", "Sampa", "Sgd"]
