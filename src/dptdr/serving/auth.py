"""API keys with scopes and tasks; only their hashes are stored."""

import fnmatch
import hashlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dptdr.errors import ConfigError, DataError, ServingError
from dptdr.io.atomic import read_regular

Scope = Literal["use", "administer"]
SCOPES: tuple[Scope, ...] = ("use", "administer")

_DIGEST = re.compile("[0-9a-fA-F]{64}")


class Unauthorized(ServingError):
    """The request has no key, or an unknown one."""


class Forbidden(ServingError):
    """The key lacks permission."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key's permissions.

    Args:
        name: Owner of the key; shown in logs.
        scopes: Permitted scopes.
        tasks: Patterns of accessible task names, such as ``medical-*``.
        bundles: Patterns of folders in the tasks folder that it may add; ``tasks`` by default.
        requests_per_second: Rate limit, 0 for none; ``None`` for the server's.
    """

    name: str
    scopes: frozenset[Scope]
    tasks: tuple[str, ...] = ("*",)
    bundles: tuple[str, ...] | None = None
    requests_per_second: float | None = None

    def demand(self, scope: Scope, task: str | None = None) -> None:
        """Require a scope and optionally access to a task.

        Raises:
            Forbidden: If the key lacks the scope, or does not cover the task.
        """
        if scope not in self.scopes:
            raise Forbidden(f"key '{self.name}' lacks the scope '{scope}'")
        if task is not None and not self.reaches(task):
            raise Forbidden(f"key '{self.name}' has no access to task '{task[:100]}'")

    def reaches(self, task: str) -> bool:
        """Check whether the key covers a task."""
        return _matches(task, self.tasks)

    @property
    def reaches_all(self) -> bool:
        """Whether the key covers all tasks."""
        return "*" in self.tasks

    def demand_folder(self, name: str) -> None:
        """Require permission to add a bundle or index.

        Raises:
            Forbidden: If the key does not cover it.
        """
        if not _matches(name, self.tasks if self.bundles is None else self.bundles):
            raise Forbidden(
                f"key '{self.name}' has no access to bundle '{name[:100]}'; allow it in the keys "
                "file under 'bundles' (or 'tasks', if there is no 'bundles')"
            )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


OPEN = Key(name="open", scopes=frozenset(SCOPES))
"""Permissions of all clients on a server without keys."""

USE_ONLY = Key(name="open", scopes=frozenset(["use"]))
"""Permissions on a server without keys that listens beyond loopback."""


class Keyring:
    """The API keys of a server.

    Args:
        keys: Hexadecimal SHA-256 of each key to its permissions; ``None`` for an open server.
        anyone: Permissions of all clients on an open server.
    """

    def __init__(self, keys: dict[str, Key] | None = None, *, anyone: Key = OPEN) -> None:
        self._keys = keys
        self._anyone = anyone

    @property
    def open(self) -> bool:
        """Whether requests need no key."""
        return self._keys is None

    def find(self, secret: str | None) -> Key:
        """Look up the permissions of a key.

        Raises:
            Unauthorized: If a key is required and this one is missing or unknown.
        """
        if self._keys is None:
            return self._anyone
        if not secret:
            raise Unauthorized(
                "expected an API key; send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            )
        # Lookup by hash prevents timing attacks.
        found = self._keys.get(hash_key(secret))
        if found is None:
            raise Unauthorized("unknown API key")
        return found

    @classmethod
    def read(cls, path: Path) -> "Keyring":
        """Read keys from a TOML file with ``[[key]]`` tables; see docs/serving.md.

        Raises:
            ConfigError: Lists all problems in the file.
        """
        try:
            values = tomllib.loads(read_regular(path).decode("utf-8"))
        except DataError as error:
            raise ConfigError(
                f"{path}: expected a file with API keys, {error.reason.lower()}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: expected TOML with [[key]] tables, {error}") from None
        tables = values.get("key")
        if not isinstance(tables, list) or not tables or set(values) != {"key"}:
            raise ConfigError(f"{path}: expected one or more [[key]] tables and nothing else")
        problems: list[str] = []
        keys: dict[str, Key] = {}
        for number, table in enumerate(tables, start=1):
            found = _problems(table)
            if not found and table["sha256"].lower() in keys:
                found = ["field 'sha256': duplicate hash; each key needs a single entry"]
            problems += [f"key {number}: {problem}" for problem in found]
            if not found:
                rate, bundles = table.get("requests_per_second"), table.get("bundles")
                keys[table["sha256"].lower()] = Key(
                    name=table["name"],
                    scopes=frozenset(table["scopes"]),
                    tasks=tuple(table.get("tasks", ["*"])),
                    bundles=None if bundles is None else tuple(bundles),
                    requests_per_second=None if rate is None else float(rate),
                )
        if problems:
            raise ConfigError(f"{path}: " + "; ".join(problems))
        return cls(keys)


class KeyFile:
    """Keys from a file, reloaded when it changes; invalid changes are reported and ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._state()
        self._keyring = Keyring.read(path)

    def keyring(self) -> Keyring:
        """Return the current keys; costs one ``stat`` if nothing has changed."""
        stamp = self._state()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keyring = Keyring.read(self.path)
            except ConfigError as error:
                sys.stderr.write(f"API keys not reloaded: {error}\n")
        return self._keyring

    def _state(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


def hash_key(secret: str) -> str:
    """Hash a key for storage."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _problems(table: Any) -> list[str]:
    if not isinstance(table, dict):
        return [f"expected a table, got {str(table)[:50]!r}"]
    name, digest, scopes = (table.get(field) for field in ("name", "sha256", "scopes"))
    rate = table.get("requests_per_second", 0)
    # Reject booleans; NaN fails the bounds check.
    good_rate = type(rate) in (int, float) and 0 <= rate <= 1e9
    expected = {
        "name": "a non-empty string" if not isinstance(name, str) or not name else "",
        "sha256": ""
        if isinstance(digest, str) and _DIGEST.fullmatch(digest)
        else "64 hexadecimal digits (the SHA-256 of the key)",
        "scopes": ""
        if isinstance(scopes, list) and scopes and all(scope in SCOPES for scope in scopes)
        else f"one or more of {list(SCOPES)}",
        "requests_per_second": "" if good_rate else "a number from 0 to 1e9",
    }
    for field in ("tasks", "bundles"):
        patterns = table.get(field, ["*"])
        plain = isinstance(patterns, list) and all(isinstance(p, str) for p in patterns)
        expected[field] = "" if plain else "a list of names or patterns"
    unknown = sorted(set(table) - set(expected))
    problems = [f"unknown fields {unknown}, expected {sorted(expected)}"] if unknown else []
    # Omit the value: it may be a key pasted instead of its hash.
    return problems + [
        f"field '{field}': expected {wanted}" for field, wanted in expected.items() if wanted
    ]
