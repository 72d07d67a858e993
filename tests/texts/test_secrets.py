"""Secrets are known by their form; what only looks random is none."""

import pytest

from factory.texts.secrets import FORMS, find_secrets

# put together here, so that no scanner of repositories takes them for real
SECRETS = {
    "aws_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + "a1B2" * 9,
    "gitlab_token": "glpat-" + "x9" * 10,
    "google_key": "AIza" + "Sy0" * 11 + "ab",
    "huggingface_token": "hf_" + "aB3" * 11,
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "sk_key": "sk-" + "proj-" + "a1" * 20,
    "slack_token": "xoxb-" + "123456789012-abcdefgh",
    "stripe_key": "sk_live_" + "a1B2" * 6,
}


@pytest.mark.parametrize("kind", sorted(FORMS))
def test_each_form_is_found_once(kind: str) -> None:
    assert find_secrets(f"the key is {SECRETS[kind]}, keep it.") == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "8f3a61c09d27b1e4f0aa8f3a61c09d27b1e4f0aa",
        "a task-" + "based-approach-to-learning-languages-at-school",
        "hf_" + "short",
        "-----BEGIN PUBLIC KEY-----",
        "MAKIA" + "IOSFODNN7EXAMPLE",
    ],
)
def test_what_is_none_is_not_found(text: str) -> None:
    assert find_secrets(text) == []
