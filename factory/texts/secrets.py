"""Secrets in a text: keys and tokens that say by their form whose they are; a password that is a word is not found."""

import re
from typing import Final

# each by the prefix and length that its issuer documents
FORMS: Final = {
    "aws_key": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    "github_token": re.compile(r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255})"),
    "gitlab_token": re.compile(r"(?<![A-Za-z0-9_-])glpat-[A-Za-z0-9_-]{20,255}"),
    "google_key": re.compile(r"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    "huggingface_token": re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,64}(?![A-Za-z0-9])"),
    "private_key": re.compile(r"-----BEGIN (?:[A-Z]{2,12} ){0,2}PRIVATE KEY-----"),
    "sk_key": re.compile(r"(?<![A-Za-z0-9_-])sk-(?:proj-|ant-|svcacct-)?(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{32,255}"),
    "slack_token": re.compile(r"(?<![A-Za-z0-9-])xox[abeprs]-[A-Za-z0-9-]{20,255}"),
    "stripe_key": re.compile(r"(?<![A-Za-z0-9_])[rs]k_(?:live|test)_[A-Za-z0-9]{24,255}"),
}


def find_secrets(text: str) -> list[str]:
    """The kind of each secret in a text, once for each time it stands there."""
    return [kind for kind, form in FORMS.items() for _ in form.finditer(text)]
