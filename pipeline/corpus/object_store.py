"""The objects below a URI in an object store that speaks S3. Each write says what it replaces, and fails otherwise."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any
from uuid import uuid4

from ...schemas.errors import CorpusError, MissingExtraError

try:
    from botocore import session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError
    from botocore.exceptions import ConnectionError as UnreachableError
except ImportError as missing:
    raise MissingExtraError("a corpus at s3://", "s3") from missing

THREADS = 8
"""Chosen here: requests at a time. One connection rarely fills a data centre's network."""
PART = 16 << 20
"""Chosen here: bytes of a part of a multi-part upload; a part is what is sent again after a fault."""
MOST_PARTS = 10_000
"""S3's limit for one object."""
READS = 5
"""Chosen here: how often reading an object is taken up again where its connection died, as botocore tries a request."""
TIMEOUT = 20
"""Chosen here: seconds to wait for an answer; well below the time of a lease, which has to be renewed meanwhile."""

_RESUME = "run the same command again: what is committed stays, and the run continues from there"
_DENIED = "the credentials must allow listing, reading, writing and deleting below this URI"
_ADVICE = {
    "NoSuchBucket": "there is no such bucket; check the name, or create it",
    "SlowDown": f"the store asks for fewer requests; wait a little, then {_RESUME}",
    "NotImplemented": "the store lacks what a corpus needs: writes with If-Match and If-None-Match, parts of uploads",
}
_STATUS_ADVICE = {
    301: "the bucket is in another region; set AWS_DEFAULT_REGION to its region",
    401: _DENIED,
    403: _DENIED,
    429: _ADVICE["SlowDown"],
    501: _ADVICE["NotImplemented"],
    503: _ADVICE["SlowDown"],
}
_ID = "conan-write"
"""The name under which an object's metadata holds the id of the write that made it."""


class StoreError(CorpusError):
    """The object store can't be used, or refuses a request; the message names the URI and what to do."""


class ChangedError(StoreError):
    """An object is not what it was when it was last seen: another writer has put or deleted it."""


@dataclass(frozen=True)
class Stored:
    """An object: its size in bytes, its ETag, which changes with its content, and when it was put (s since 1970)."""

    size: int
    etag: str
    time: float = field(default_factory=time.time, compare=False)


class ObjectStore:
    """The objects below `s3://BUCKET/PREFIX`, by their paths from there. Threads may share it.

    Address, region and credentials are those of the AWS command line: variables such as AWS_ENDPOINT_URL, profiles, and
    roles of the machine. Requests that fail for a moment are repeated by botocore, AWS_MAX_ATTEMPTS times.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.sending = BoundedSemaphore(THREADS)  # parts in memory, of however many files
        config = Config(connect_timeout=TIMEOUT, read_timeout=TIMEOUT, max_pool_connections=2 * THREADS)
        with self._explained():
            self.client = session.get_session().create_client("s3", config=config)

    def list_all(self, folder: str = "") -> dict[str, Stored]:
        """List the objects below a folder, by path."""
        found = {}
        with self._explained():
            pages = self.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + (folder and f"{folder}/")):
                for each in page.get("Contents", []):
                    path = each["Key"].removeprefix(self.prefix)
                    if not path.endswith("/"):  # which tools put as a folder
                        found[path] = Stored(each["Size"], each["ETag"], each["LastModified"].timestamp())
        return found

    def find(self, path: str) -> Stored | None:
        """Return what is stored at a path now, whether or not it is listed yet; None if there is nothing."""
        try:
            with self._explained():
                found = self._ask("head_object", path)
        except ChangedError:
            return None
        return Stored(found["ContentLength"], found["ETag"])

    def read_with_age(self, path: str) -> tuple[bytes, str, float] | None:
        """Return an object's content, its ETag and its age in seconds by the store's own clock; None if absent."""
        try:
            with self._explained():
                found = self._ask("get_object", path)
                content = found["Body"].read()
        except ChangedError:
            return None
        now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        return content, found["ETag"], (now - found["LastModified"]).total_seconds()

    def read(self, path: str, stored: Stored) -> Iterator[bytes]:
        """Yield the content of an object in chunks.

        Raises:
            ChangedError: it is no longer what was listed.
        """
        at = failures = 0
        while at < stored.size:
            try:
                with self._explained():
                    body = self._ask("get_object", path, IfMatch=stored.etag, Range=f"bytes={at}-")["Body"]
                    for chunk in body.iter_chunks(1 << 20):
                        at += len(chunk)
                        yield chunk
            except ChangedError:
                raise
            except StoreError:
                failures += 1
                if failures == READS:
                    raise

    def put(self, path: str, data: bytes, before: str | None, write: str = "") -> str:
        """Put a small object, and return its ETag. `before` is the ETag of what it replaces, None if there is nothing.

        `write` is an id. A write that finds an object with its own id counts as done.

        Raises:
            ChangedError: something else is stored there now.
        """
        write = write or uuid4().hex
        with self._decided(path, write) as decided:
            answer = self._ask("put_object", path, Body=data, Metadata={_ID: write}, **_condition(before))
            decided.append(answer["ETag"])
        return decided[0]

    def upload(self, path: str, file: Path, before: str | None, check: Callable[[], None], write: str = "") -> str:
        """Put a file, which becomes visible as a whole, and return its ETag; `before` and `write` are as in `put`.

        `check` is called right before the object would appear; nothing appears if it raises.

        Raises:
            ChangedError: something else is stored there now.
        """
        size = file.stat().st_size
        if size <= PART:
            data = file.read_bytes()
            check()
            return self.put(path, data, before, write)
        write = write or uuid4().hex
        with self._explained():
            upload = self._ask("create_multipart_upload", path, Metadata={_ID: write})["UploadId"]
        try:
            parts = self._upload_parts(path, upload, file, max(PART, -(-size // MOST_PARTS)))
            check()
            with self._decided(path, write) as decided:
                answer = self._ask(
                    "complete_multipart_upload",
                    path,
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},
                    **_condition(before),
                )
                decided.append(answer["ETag"])
            return decided[0]
        except BaseException:
            with suppress(BotoCoreError, ClientError):  # or the store would keep, and charge for, what nobody sees
                self._ask("abort_multipart_upload", path, UploadId=upload)
            raise

    def _upload_parts(self, path: str, upload: str, file: Path, size: int) -> list[Mapping[str, Any]]:
        def send(number: int) -> Mapping[str, Any]:
            with self.sending, file.open("rb") as source, self._explained():
                source.seek((number - 1) * size)
                answer = self._ask("upload_part", path, UploadId=upload, PartNumber=number, Body=source.read(size))
            checksums = {name: value for name, value in answer.items() if name.startswith("Checksum") and value}
            return {"PartNumber": number, "ETag": answer["ETag"]} | checksums

        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(send, range(1, -(-file.stat().st_size // size) + 1)))

    def delete(self, path: str) -> None:
        """Delete an object, if it is there."""
        with self._explained():
            self._ask("delete_object", path)

    def _ask(self, operation: str, path: str, **arguments: Any) -> Any:
        return getattr(self.client, operation)(Bucket=self.bucket, Key=self.prefix + path, **arguments)

    @contextmanager
    def _decided(self, path: str, write: str) -> Iterator[list[str]]:
        """Yield a list for the ETag of a conditional write.

        A write whose answer was lost is sent again by botocore, and refused, because it has been carried out already.
        Therefore a refused write counts as done if the object has its id.
        """
        decided: list[str] = []
        try:
            with self._explained():
                yield decided
        except StoreError:
            with suppress(BotoCoreError, ClientError):
                found = self._ask("head_object", path)
                if found["Metadata"].get(_ID) == write:
                    decided.append(found["ETag"])
            if not decided:
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise what goes wrong as StoreError; as ChangedError if an object is absent, or not what was expected."""
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "?")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status in (404, 409, 412) and code not in ("NoSuchBucket", "NoSuchUpload"):
                raise ChangedError(
                    f"{self.uri}: something else has written here meanwhile ({error.operation_name}: {code}); {_RESUME}"
                ) from error
            advice = _ADVICE.get(code) or _STATUS_ADVICE.get(status) or (_RESUME if status >= 500 else "")
            problem = f"{advice} ({error.operation_name}: {code})" if advice else str(error)
            raise StoreError(f"{self.uri}: {problem}") from error
        except NoCredentialsError as error:
            raise StoreError(
                f"{self.uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except (HTTPClientError, UnreachableError, IncompleteReadError) as error:
            raise StoreError(f"{self.uri}: {error}; check the network and AWS_ENDPOINT_URL, then {_RESUME}") from error
        except BotoCoreError as error:
            raise StoreError(f"{self.uri}: {error}; check the settings of AWS, as in ~/.aws/config") from error


def _condition(before: str | None) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if before is None else {"IfMatch": before}
