"""An object store that speaks S3: what is under one `s3://BUCKET/PREFIX`, written on conditions. Only here is s3fs.

    put(name, ..., over=None)    where no object has this name yet (If-None-Match: *)
    put(name, ..., over=ETAG)    in place of exactly that object (If-Match)

Either is done whole or not at all: a long file goes up in parts, which nobody sees before all are there. Credentials,
region and endpoint are those of the environment and of AWS's own files; none of them is ever in a message of ours.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from blake3 import blake3

from factory.errors import DatasetError, one_line, pip_install, redact

SCHEME: Final = "s3://"
BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# no more than what every reader of such an address takes as it stands
NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._=+-]+")
ATTEMPTS: Final = 10  # of one request, with pauses up to 20 s between them; AWS_MAX_ATTEMPTS says another number
PART_BYTES, MOST_PARTS, LANES = 16 * 1024 * 1024, 9_000, 4  # of a file that goes up in parts, LANES of them at a time
DIGEST: Final = "blake3"  # of an object's metadata: what is in it, whatever the store makes its ETag of
KEYS: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
GO_ON: Final = "committed shards are whole, the same command goes on from them"
REFUSED: Final = {
    *("AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "401", "403"),
    *("RequestTimeTooSkewed", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"),
}


@dataclass(frozen=True, slots=True)
class Url:
    """`s3://BUCKET/PREFIX`, where one dataset is."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}"

    @property
    def name(self) -> str:
        return self.prefix.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """What a folder of one's own for it is called."""
        return ",".join((self.bucket, *self.prefix.split("/")))

    def with_name(self, name: str) -> "Url":
        """The same with another last part."""
        return Url(self.bucket, "".join(self.prefix.rpartition("/")[:2]) + name)


def is_url(text: str) -> bool:
    """Whether a text is an object store's address, and not a path."""
    return text.startswith(SCHEME)


def read_url(text: str) -> Url:
    """`s3://BUCKET/PREFIX` as it is typed. Raises DatasetError."""
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket or ":" in bucket:  # it is not told what stands there
        raise DatasetError(f"{SCHEME}…: an address has no credentials in it; {KEYS}, and leave them out of the address")
    if not BUCKET.fullmatch(bucket):
        raise DatasetError(f"{text}: {bucket!r} is no name of a bucket; give s3://BUCKET/PREFIX")
    if not prefix or not all(map(NAME.fullmatch, prefix.split("/"))):
        told = "a dataset needs a prefix of its own" if not prefix else f"{prefix!r} is no plain prefix"
        raise DatasetError(f"{text}: {told}; give s3://BUCKET/PREFIX, of letters, digits and . _ = + - between the /")
    return Url(bucket, prefix)


class Conflict(Exception):
    """An object is not as the condition of a `put` or a `remove` said."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as the store tells of it; its digest is told by `look` alone."""

    etag: str
    bytes: int
    digest: str = ""


class Objects(Protocol):
    """What is asked of S3: by the names of its requests, and whole objects."""

    def call_s3(self, method: str, **arguments: Any) -> Any: ...

    def cat_file(self, path: str) -> bytes: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...


def connect() -> Objects:
    """S3 by the environment's credentials. Raises DatasetError where the extra is not installed."""
    try:
        import botocore.session
        import s3fs
    except ModuleNotFoundError as error:
        raise DatasetError(f"{SCHEME}: {error.name} is not installed; {pip_install('s3')}") from None
    most = botocore.session.get_session().get_config_variable("max_attempts") or ATTEMPTS
    # of this process and job alone: a shared one could be of another's settings, and no listing may be an old one
    opened = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={"retries": {"mode": "standard", "total_max_attempts": int(most)}},
    )
    opened.retries = 3  # of what is cut off while it is read, which those above do not ask again
    asked: Objects = opened
    return asked


class Bucket:
    """The objects of one address, by their names below it; `objects` are a connection that is there already."""

    def __init__(self, url: Url, objects: Objects | None = None, part_bytes: int = PART_BYTES) -> None:
        self.url, self.part_bytes = url, part_bytes
        self.objects = objects or connect()
        self.down: DatasetError | None = None  # what it has failed by, beyond all tries

    def list(self) -> dict[str, Seen]:
        """All objects, by name."""
        found: dict[str, Seen] = {}
        asked = {"Bucket": self.url.bucket, "Prefix": f"{self.url.prefix}/"}
        more: dict[str, str] = {}
        while True:
            with self._told():
                told = self.objects.call_s3("list_objects_v2", **asked, **more)
            for one in told.get("Contents", ()):
                found[one["Key"].removeprefix(f"{self.url.prefix}/")] = Seen(one["ETag"], one["Size"])
            if not told.get("IsTruncated"):
                return found
            more = {"ContinuationToken": told["NextContinuationToken"]}

    def look(self, name: str) -> Seen | None:
        """One object, without its bytes."""
        try:
            with self._told(name):
                told = self.objects.call_s3("head_object", **self._at(name))
        except FileNotFoundError:
            return None
        return Seen(told["ETag"], told["ContentLength"], told.get("Metadata", {}).get(DIGEST, ""))

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes of a small object, and its ETag. Raises FileNotFoundError."""
        while True:
            before = self.look(name)
            with self._told(name):
                data: bytes = self.objects.cat_file(f"{self.url}/{name}")
            # in two requests, so that one that is cut off is asked again; between them it may have been replaced
            if before is not None and before == self.look(name):
                return data, before.etag

    def fetch(self, name: str, path: Path) -> None:
        """Write an object to a file, whole or not at all. Raises FileNotFoundError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            with self._told(name):
                self.objects.get_file(f"{self.url}/{name}", str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def put(self, name: str, data: bytes | Path, digest: str = "", over: str | None = None) -> str:
        """Write an object on a condition, see above; its ETag. Raises Conflict."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if isinstance(data, Path) and size > 2 * self.part_bytes:
            return self._put_parts(name, data, size, digest, over)
        body = data if isinstance(data, bytes) else data.read_bytes()
        digest = digest or blake3(body).hexdigest()
        try:
            with self._told(name):
                told = self.objects.call_s3("put_object", Body=body, **self._new(name, digest), **_condition(over))
        except Conflict:
            return self._ours(name, digest)
        return str(told["ETag"])

    def _put_parts(self, name: str, path: Path, size: int, digest: str, over: str | None) -> str:
        length = max(self.part_bytes, -(-size // MOST_PARTS))
        with self._told(name):
            begun = self.objects.call_s3("create_multipart_upload", **self._new(name, digest))
        upload = self._at(name) | {"UploadId": begun["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as handle:
                handle.seek(number * length)
                body = handle.read(length)
            told = self.objects.call_s3("upload_part", Body=body, PartNumber=number + 1, **upload)
            return {"PartNumber": number + 1, "ETag": told["ETag"]}

        try:
            with self._told(name), ThreadPoolExecutor(LANES) as lanes:
                parts = {"Parts": list(lanes.map(send, range(-(-size // length))))}
                asked = {**upload, "MultipartUpload": parts, **_condition(over)}
                return str(self.objects.call_s3("complete_multipart_upload", **asked)["ETag"])
        except BaseException as error:
            # what is neither complete nor given up is kept by the store, and paid for
            with suppress(Exception):
                self.objects.call_s3("abort_multipart_upload", **upload)
            if isinstance(error, Conflict):
                return self._ours(name, digest)
            raise

    def _ours(self, name: str, digest: str) -> str:
        """The ETag of an object that is there against a condition: an answer may be lost, and its request asked again.

        Raises Conflict where other bytes are there.
        """
        there = self.look(name)
        if there is None or not digest or there.digest != digest:
            raise Conflict(name)
        return there.etag

    def remove(self, name: str, etag: str) -> None:
        """Take exactly this object away. Raises Conflict where there is another one."""
        with self._told(name):
            self.objects.call_s3("delete_object", **self._at(name), IfMatch=etag)

    def give_up_parts(self) -> None:
        """Forget what was sent of files that never came to their end; for whoever is the only writer."""
        with self._told():
            asked = {"Bucket": self.url.bucket, "Prefix": f"{self.url.prefix}/"}
            told = self.objects.call_s3("list_multipart_uploads", **asked)
            for one in told.get("Uploads", ()):
                upload = {"Key": one["Key"], "UploadId": one["UploadId"]}
                self.objects.call_s3("abort_multipart_upload", Bucket=self.url.bucket, **upload)

    def _at(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.url.bucket, "Key": f"{self.url.prefix}/{name}"}

    def _new(self, name: str, digest: str) -> dict[str, Any]:
        return self._at(name) | {"Metadata": {DIGEST: digest}}

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Turn what the store or the way to it does into a Conflict, a FileNotFoundError or one line."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        where = f"{self.url}/{name}" if name else str(self.url)
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            self.down = DatasetError(f"{self.url}: there are no credentials for it; {KEYS}")
            raise self.down from None
        except (OSError, BotoCoreError, ClientError) as error:
            code = _code_of(error)
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412"):
                raise Conflict(where) from None
            if code in ("NoSuchKey", "404") and name:
                raise FileNotFoundError(where) from None
            if code in ("NoSuchBucket", "404"):
                told = f"there is no bucket {self.url.bucket!r}; make it, or mend the address"
            elif code in REFUSED:
                told = f"the store refuses these credentials ({code}); {KEYS}, of someone who may list, read and write"
                told += f" there; {GO_ON}"
            else:
                told = f"the store does not answer as it should ({_tell(error, code)}); {GO_ON}"
            self.down = DatasetError(f"{where if code not in ('', 'NoSuchBucket') else self.url}: {told}")
            raise self.down from None


def _condition(over: str | None) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if over is None else {"IfMatch": over}


def _code_of(error: BaseException) -> str:
    """S3's own word for what is wrong; "" where it has said none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _tell(error: BaseException, code: str) -> str:
    told = redact(one_line(error, 200))
    return f"{code}: {told}" if code else told
