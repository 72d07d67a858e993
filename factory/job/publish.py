"""`[publish]`: what a card must say to strangers, and nothing in the rows can tell. It decides no row."""

from typing import Annotated

from pydantic import Field, model_validator

from factory.job.config import Config

# as the hub names licences in a card: apache-2.0, cc-by-4.0, llama3.1, other
LicenseName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")]
Line = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\r\n]*\S[^\r\n]*$")]
Tag = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.:-]{0,63}$")]


class PublishConfig(Config):
    """`license` of the dataset, and `output_terms`: the terms of what the teacher wrote, or where they stand.

    `language` are ISO 639-1 codes. Nothing of it is part of the job's digest: it may change when a job is resumed.
    """

    license: LicenseName
    output_terms: Line
    license_name: Line | None = None
    license_link: Line | None = None
    title: Line | None = None
    language: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] = Field(default_factory=list)
    tags: list[Tag] = Field(default_factory=list)
    limits: list[Line] = Field(default_factory=list)
    citation: Annotated[str, Field(max_length=4000)] | None = None

    @model_validator(mode="after")
    def _others_are_named(self) -> "PublishConfig":
        if self.license == "other" and not (self.license_name and self.license_link):
            raise ValueError('license = "other" needs license_name and license_link, which say what it is')
        return self
