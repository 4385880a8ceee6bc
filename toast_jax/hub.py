"""Files on the Hugging Face Hub, named `hf:OWNER/NAME[@REVISION][/FILE]`.

They are downloaded by the Hub's own client (`huggingface_hub`, the extra `hub`), with its cache, progress bar and settings:
HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and others. It is imported when a name is used.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import json
import logging
import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toast_jax import package_files
from toast_jax.errors import InputError, listed, of_extra

log = logging.getLogger(__name__)

PREFIX = "hf:"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@(refs/\w+/[^/@]+|[^/@]+))?(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX = ".index.json"  # ending of the file that names the shards of large weights
_SMALL = 2**20  # bytes; smaller downloads are not logged
# Patterns of the files of a repository by purpose, preferred first.
WEIGHTS = (
    *("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}"),
    *("*.safetensors", "*.npz", "*.pth", "*.bin", "*.pt", "*.ckpt"),
)
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tok*.bin")
_BESIDE = ("config.json", "tokenizer_config.json", "chat_template.jinja")  # downloaded with any other file


@dataclasses.dataclass(frozen=True)
class Place:
    """A repository or a file in it, at the newest commit of the main branch if there is no revision."""

    repository: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        revision, file = (mark + part if part else "" for mark, part in (("@", self.revision), ("/", self.file)))
        return f"{PREFIX}{self.repository}{revision}{file}"


class Contents(NamedTuple):
    """The files of a repository at a commit: sizes in bytes (None offline), and SHA-256 if the Hub has it."""

    commit: str
    sizes: Mapping[str, int | None]
    hashes: Mapping[str, str]
    licence: str


def is_place(text: str) -> bool:
    """Return whether a text names a place on the Hub."""
    return text.startswith(PREFIX)


def parse(text: str) -> Place:
    """Parse `hf:OWNER/NAME[@REVISION][/FILE]`; raise InputError for anything else."""
    if not (match := _NAME.fullmatch(text)):
        raise InputError(f"{text!r} names nothing on the Hugging Face Hub; write hf:OWNER/NAME[@REVISION][/FILE].")
    return Place(*(part or "" for part in match.groups()))


def covers(text: str, pinned: str) -> bool:
    """Return whether a name without a revision fits a pinned place that was recorded earlier."""
    if not is_place(text) or not is_place(pinned):
        return False
    place, other = parse(text), parse(pinned)
    return not place.revision and place.repository == other.repository and place.file in ("", other.file)


def pinned(place: Place, patterns: tuple[str, ...]) -> Place:
    """Add commit and file to a place, so that it always names the same bytes.

    Args:
      place: on the Hub.
      patterns: `WEIGHTS` or `TOKENIZER`, to choose a file if the place does not name one.

    Raises:
      InputError: the repository, revision or file does not exist or may not be read, or the Hub cannot be reached.
    """
    if place.file and _COMMIT.fullmatch(place.revision):
        return place
    contents = contents_of(place.repository, place.revision)
    return Place(place.repository, contents.commit, place.file or _chosen(place, contents, patterns))


def local(place: Place, patterns: tuple[str, ...] = WEIGHTS) -> Path:
    """Download the file of a place, unless it is cached, and return its path; with an index, its shards too.

    Downloaded files are compared with the Hub's SHA-256. `config.json` and a chat template are downloaded with them.

    Raises:
      InputError: see `pinned`; or the disk has no room for it, or the download fails.
    """
    place = pinned(place, patterns)
    path = _fetch(place, [place.file])
    if place.file.endswith(_INDEX):
        _fetch(place, [posixpath.join(posixpath.dirname(place.file), shard) for shard in _shards(path)])
    return path


def read_json(place: Place, file: str) -> dict[str, Any] | None:
    """Read a JSON object in the repository of a place; None if the file does not exist.

    Raises:
      InputError: see `pinned`; or the file is not a JSON object.
    """
    contents = contents_of(place.repository, place.revision)
    if file not in contents.sizes:
        return None
    path = _fetch(Place(place.repository, contents.commit, file), [file])
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{file} of {place} is not JSON ({error}); choose another repository or revision.") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} of {place} is no JSON object; choose another repository or revision.")
    return content


def provenance(place: Place) -> dict[str, Any]:
    """Describe a pinned, downloaded place, for the record of a run: repository, revision, file, licence and SHA-256."""
    path = local(place)
    files = [place.file]
    if place.file.endswith(_INDEX):
        files += [posixpath.join(posixpath.dirname(place.file), shard) for shard in _shards(path)]
    hashes = {file: _sha256(_fetch(place, [file])) for file in files}
    facts = {"repository": place.repository, "revision": place.revision, "file": place.file}
    with contextlib.suppress(InputError):  # the Hub may have closed the repository since its download
        if licence := contents_of(place.repository, place.revision).licence:  # which is unknown offline
            facts["licence"] = licence
    return facts | {"sha256": hashes if len(files) > 1 else hashes[place.file]}


@functools.cache  # one process sees one state of a repository
def contents_of(repository: str, revision: str) -> Contents:
    """List the files of a repository; if the Hub cannot be reached, those in the cache.

    Raises:
      InputError: see `pinned`.
    """
    place, client = Place(repository, revision), _client()
    timeout = client.constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = client.HfApi().model_info(repository, revision=revision or None, files_metadata=True, timeout=timeout)
    except Exception as error:  # of the client or of the library that it uses for HTTP
        if _is_refused(client, error):
            raise _refusal(place, error) from error
        return _cached_contents(place, error)
    files = info.siblings or []
    hashes = {file.rfilename: file.lfs["sha256"] for file in files if file.lfs}
    licence = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "")
    contents = Contents(info.sha, {file.rfilename: file.size for file in files}, hashes, licence)
    small = [file for file, size in contents.sizes.items() if (size or 0) < _SMALL]
    if small and not _COMMIT.fullmatch(revision):
        # A small download by the name of the revision lets the client find its commit offline; a gated repository refuses it.
        _download(client, place, "config.json" if "config.json" in small else small[0], revision or None)
    return contents


def _cached_contents(place, cause) -> Contents:
    client = _client()
    try:
        folder = Path(client.snapshot_download(place.repository, revision=place.revision or None, local_files_only=True))
    except client.errors.LocalEntryNotFoundError as error:
        if not (incomplete := getattr(error, "snapshot_path", None)):
            raise _refusal(place, cause) from cause
        folder = Path(incomplete)
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return Contents(folder.name, dict.fromkeys(files), {}, "")


def _chosen(place, contents, patterns) -> str:
    """Choose the file of a repository that matches the first possible pattern."""
    for pattern in patterns:
        match fnmatch.filter(sorted(contents.sizes), pattern):
            case [file]:
                return file
            case [_, *_] as several:
                raise InputError(f"{place} has several such files ({listed(several)}); name one, as in {place}/{several[0]}.")
    raise InputError(
        f"{place} has no file that can be read ({', '.join(patterns)}); it has {listed(sorted(contents.sizes)) or 'no files'}."
    )


def _shards(index: Path) -> list[str]:
    """List the shards in an index; of a damaged index, which its reader reports, return none."""
    try:
        return sorted({str(shard) for shard in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _fetch(place: Place, files: list[str]) -> Path:
    """Download the files of a pinned place that are not cached, one by one; return the path of the first."""
    client = _client()

    def cached(file):
        path = client.try_to_load_from_cache(place.repository, file, revision=place.revision)
        return Path(path) if isinstance(path, str) else None

    if missing := [file for file in files if not cached(file)]:
        contents = contents_of(place.repository, place.revision)
        # First, because an interrupted download goes on only while one of `files` is missing.
        missing = [file for file in _BESIDE if file in contents.sizes and not cached(file) and file not in missing] + missing
        total = sum(contents.sizes.get(file) or 0 for file in missing)
        remedy = "set HF_HOME to a folder on another disk"
        package_files.check_room(Path(client.constants.HF_HUB_CACHE), total, str(place), remedy)
        if total > _SMALL:
            licence = f", licence: {contents.licence}" if contents.licence else ""
            log.info("Downloading %s (%s MB%s).", place, f"{total / 1e6:,.0f}", licence)
        for file in missing:
            path = _download(client, place, file, place.revision)
            expected = contents.hashes.get(file)
            if expected and (digest := package_files.digest_of(path)) != expected:
                for damaged in (path.resolve(), path):
                    damaged.unlink(missing_ok=True)
                raise InputError(
                    f"{file} of {place} is another file than the Hub says: its sha256 is {digest}, not {expected}; it was "
                    "removed, so give the same command again, from another network if this repeats."
                )
    return cached(files[0]) or Path()


def _download(client, place, file, revision) -> Path:
    try:
        return Path(client.hf_hub_download(place.repository, file, revision=revision))
    except Exception as error:  # of the client, of the library that it uses for HTTP, or of the disk
        raise _refusal(place, error, file) from error


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file in the client's cache, where it is the name of large files."""
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else package_files.digest_of(path)


def _client():
    """Import the client, with submodules that it does not import itself."""
    names = ("huggingface_hub", "huggingface_hub.constants", "huggingface_hub.errors")
    return [of_extra(name, "hub", "A name that begins with hf:") for name in names][0]


def _is_refused(client, error) -> bool:
    """Return whether the Hub has refused the request for good."""
    answered = isinstance(error, client.errors.HfHubHTTPError) and error.response.status_code < 500
    return answered or isinstance(error, client.errors.HFValidationError)


def _refusal(place: Place, error: Exception, file: str = "") -> InputError:
    """Turn an exception of the client into a message for the user."""
    client = _client()
    errors, endpoint = client.errors, client.constants.ENDPOINT
    page, log_in = f"{endpoint}/{place.repository}", "log in with `hf auth login` (or set HF_TOKEN)"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    reason = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}".partition("\n")[0]
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{place} is gated: accept its terms at {page}, {log_in}, and give the same command again.")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{place} does not exist: the repository has no revision {place.revision!r}; see {page}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(
            f"There is no repository {place.repository} at {endpoint} that you may read; correct its name or, if it is "
            f"private, {log_in}."
        )
    if status == 404:
        return InputError(f"{place.repository} has no file {file or place.file} at this revision; see {page}.")
    if status in (401, 403):
        return InputError(f"{endpoint} refuses to show {place} ({status}): {log_in} with an account that may read it.")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{place} names nothing on the Hub ({reason}); correct it.")
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)) and client.constants.HF_HUB_OFFLINE:
        return InputError(f"{place} is not in the cache, and HF_HUB_OFFLINE is set; unset it to download the file.")
    if isinstance(error, OSError) and error.errno:
        return InputError(f"{place} cannot be stored in the cache ({os.strerror(error.errno)}); set HF_HOME to another folder.")
    if file and not isinstance(error, errors.LocalEntryNotFoundError):
        return InputError(f"{place} was not downloaded completely ({reason}); give the same command again.")
    return InputError(
        f"{place} is not in the cache, and {endpoint} cannot be reached ({reason}); check the network, or name a file that you "
        "have."
    )
