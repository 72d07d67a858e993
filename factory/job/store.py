"""`[store]`: how a dataset is made whose `out` is in an object store. It decides no row."""

from typing import Annotated

from pydantic import Field

from factory.job.config import Config


class StoreConfig(Config):
    """`folder`: on a disk of this machine, where working folders are made, one for each `out` in a store."""

    folder: Annotated[str, Field(min_length=1)] = ".factory-store"
