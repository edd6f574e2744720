"""How fast machines are at what a run does, from rates.toml: measured or estimated, when, and from what."""

import sys
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from landmarks.running.command import InputError
from landmarks.running.command_line import suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("rates.toml")


class Rate(BaseModel):
    """So much a second, of one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(gt=0)
    how: Literal["measured", "estimated"]
    date: date
    source: str


class Rates(BaseModel):
    """What a machine does a second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    decode: Rate  # photos of some 640 px, of one core
    exact: Rate  # multiply-adds of the exact search
    listed: Rate  # and those of the approximate one to find the list of each photo, on the processor
    codes: Rate  # codes of the approximate one that are scanned, of 512 dimensions
    told: Rate  # and its candidates whose similarities are told
    extract: Rate  # photos, to local features
    compare: Rate  # pairs of photos, by these


class Device(BaseModel):
    """A kind of machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    cores: int = Field(ge=1)
    memory: float = Field(gt=0)  # bytes
    accelerator: bool
    passes: dict[str, Rate] = Field(min_length=1)  # by backbone: multiply-adds of a pass
    rates: Rates

    def times(self, factor: float) -> "Device":
        """One that is so many times as fast, at all but passes."""
        faster = {name: rate.model_copy(update={"value": rate.value * factor}) for name, rate in self.rates}
        return self.model_copy(update={"rates": Rates(**faster)})

    def pass_of(self, backbone: str) -> tuple[str, Rate]:
        """The rate of a backbone, or that of the first one; and the name of the one that it is of."""
        name = backbone if backbone in self.passes else next(iter(self.passes))
        return name, self.passes[name]


def device(name: str) -> Device:
    """A kind of machine by its name in rates.toml. Raises InputError if there is none."""
    known = names()
    if name not in known:
        raise InputError(f"--device {name}: rates are known of {', '.join(known)}{suggestion(name, known)}")
    return known[name]


def names() -> dict[str, Device]:
    return {name: Device.model_validate(one) for name, one in tomllib.loads(FILE.read_text(encoding="utf-8")).items()}
