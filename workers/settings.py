"""The base of every model that a user fills in: frozen, and a misspelt field is an error."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen model that refuses unknown fields and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
