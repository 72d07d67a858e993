"""All formats, by name."""

from typing import Final

from factory.publish.exports import (
    axolotl,
    distillkit,
    dpo,
    kto,
    messages,
    modelopt,
    speculators,
    text,
    tinker,
    trl_gkd,
    trl_sft,
    verl,
)
from factory.publish.exports.format import Format

_MODULES = (trl_sft, trl_gkd, dpo, kto, messages, verl, axolotl, distillkit, tinker, speculators, modelopt, text)
FORMATS: Final[dict[str, Format]] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
