"""Names and lots made of content: the same on every machine, in every process and in every run."""

import hashlib
import json


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces, no escapes, so that it can be hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: object, length: int = 24) -> str:
    """Hex digest of a JSON-able value, the same on every machine and under every hash seed."""
    # "surrogatepass": a lone surrogate in a user's text is no UTF-8, and must still have a name
    return hashlib.blake2b(canonical_json(value).encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()[:length]


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits (what every engine takes) from anything JSON-able."""
    return int(content_hash(parts, 16), 16) & 0x7FFF_FFFF


def is_drawn(row_id: str, share: float) -> bool:
    """Whether a row is among a share of all, by its id alone (a hash)."""
    # the same rows in every run and on every machine, and a larger share holds those of a smaller one
    return int(content_hash(row_id, 8), 16) < share * 2**32
