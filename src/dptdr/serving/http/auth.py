"""API keys: who may use which tasks, and who may change them. Only hashes are stored."""

import fnmatch
import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dptdr.errors import ConfigError, ServingError

Scope = Literal["use", "administer"]
SCOPES: tuple[Scope, ...] = ("use", "administer")


class Unauthorized(ServingError):
    """The request carries no key, or one that is not known."""


class Forbidden(ServingError):
    """The key does not reach that far."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key.

    Args:
        name: Who has it; stands in logs.
        scopes: What it may do.
        tasks: Patterns of task names it may touch, as in ``medical-*``.
        bundles: Patterns of bundles in the tasks folder that it may add; ``tasks`` by default.
        requests_per_second: Its own rate, 0 for no limit; none: the server's.
    """

    name: str
    scopes: frozenset[Scope]
    tasks: tuple[str, ...] = ("*",)
    bundles: tuple[str, ...] | None = None
    requests_per_second: float | None = None

    def demand(self, scope: Scope, task: str | None = None) -> None:
        """Refuse what the key does not allow.

        Args:
            scope: What is to be done.
            task: With which task, where one is concerned.

        Raises:
            Forbidden: If the key does not reach that far.
        """
        if scope not in self.scopes:
            raise Forbidden(f"the key '{self.name}' has no scope '{scope}'")
        if task is not None and not self.reaches(task):
            raise Forbidden(f"the key '{self.name}' does not reach task '{task[:100]}'")

    def reaches(self, task: str) -> bool:
        """Say whether the key may touch a task."""
        return any(fnmatch.fnmatchcase(task, pattern) for pattern in self.tasks)

    @property
    def reaches_all(self) -> bool:
        """Whether no task is out of reach."""
        return "*" in self.tasks

    def demand_bundle(self, name: str) -> None:
        """Refuse a bundle that the key may not add: it may hold another tenant's task.

        Args:
            name: Its name in the tasks folder.

        Raises:
            Forbidden: If the key does not reach it.
        """
        patterns = self.tasks if self.bundles is None else self.bundles
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            raise Forbidden(
                f"the key '{self.name}' does not reach bundle '{name[:100]}'; its 'bundles' (or, "
                "without them, its 'tasks') in the keys file say which it may add"
            )


OPEN = Key(name="open", scopes=frozenset(SCOPES))
"""What a server without keys gives to everyone."""

USE_ONLY = Key(name="open", scopes=frozenset(["use"]))
"""What a server without keys gives when its address is reachable from outside."""


class Keyring:
    """All keys of a server.

    Args:
        keys: SHA-256 of the key, hexadecimal, to what it allows; none: an open server.
        anyone: What everyone may do on an open server.
    """

    def __init__(self, keys: dict[str, Key] | None = None, *, anyone: Key = OPEN) -> None:
        self._keys = keys
        self._anyone = anyone

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return self._keys is None

    def find(self, secret: str | None) -> Key:
        """Return what a request's key allows.

        Args:
            secret: The key, as the request brought it.

        Returns:
            The key's rights.

        Raises:
            Unauthorized: If a key is needed and this is none.
        """
        if self._keys is None:
            return self._anyone
        if not secret:
            raise Unauthorized(
                "expected an API key: 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
            )
        # Looked up by hash: how long it takes says nothing about the key.
        found = self._keys.get(hash_key(secret))
        if found is None:
            raise Unauthorized("the API key is not known")
        return found

    @classmethod
    def read(cls, path: Path) -> "Keyring":
        """Read keys from a TOML file.

        Args:
            path: ``[[key]]`` tables with ``name``, ``sha256``, ``scopes`` and, if wanted, ``tasks``
                and ``requests_per_second``.

        Returns:
            The keys.

        Raises:
            ConfigError: If something is wrong with the file; lists all problems.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: expected a file with API keys, {(error.strerror or str(error)).lower()}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: expected TOML with [[key]] tables, {error}") from None
        tables = values.get("key")
        if not isinstance(tables, list) or not tables or set(values) != {"key"}:
            raise ConfigError(f"{path}: expected one or more [[key]] tables and nothing else")
        problems: list[str] = []
        keys: dict[str, Key] = {}
        for number, table in enumerate(tables, start=1):
            found = _problems(table)
            if not found and table["sha256"].lower() in keys:
                found = ["field 'sha256': the same hash is given twice; one key has one entry"]
            problems += [f"key {number}: {problem}" for problem in found]
            if not found:
                rate = table.get("requests_per_second")
                bundles = table.get("bundles")
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


def hash_key(secret: str) -> str:
    """Return how a key is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _problems(table: Any) -> list[str]:
    problems = []
    if not isinstance(table, dict):
        return [f"expected a table, got {str(table)[:50]!r}"]
    allowed = {"name", "sha256", "scopes", "tasks", "bundles", "requests_per_second"}
    unknown = sorted(set(table) - allowed)
    if unknown:
        problems.append(f"unknown fields {unknown}, expected {sorted(allowed)}")
    if not isinstance(table.get("name"), str) or not table.get("name"):
        problems.append("field 'name': expected a text")
    digest = table.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64 or not _is_hex(digest):
        problems.append("field 'sha256': expected 64 hexadecimal digits (the key's hash)")
    scopes = table.get("scopes")
    if not isinstance(scopes, list) or not scopes or any(s not in SCOPES for s in scopes):
        got = str(scopes)[:100]
        problems.append(f"field 'scopes': expected some of {list(SCOPES)}, got {got}")
    for name in ("tasks", "bundles"):
        patterns = table.get(name, ["*"])
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            problems.append(f"field '{name}': expected a list of names or patterns")
    rate = table.get("requests_per_second", 0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1e9:
        problems.append("field 'requests_per_second': expected a number from 0 to 1e9")
    return problems


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF" for character in text)
