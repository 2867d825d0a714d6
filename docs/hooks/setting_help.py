"""Gives the fields of settings, in the API page, the help texts that their declarations hold."""

import importlib
from typing import Any

import griffe

from dptdr.config.settings import declared


class SettingHelp(griffe.Extension):
    """Take the docstring of a setting from its declaration."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Fill in the fields of one class."""
        if cls.module.path.startswith("dptdr.config.") and cls.name.endswith("Config"):
            found = getattr(importlib.import_module(cls.module.path), cls.name)
            for name, field in declared(found).items():
                if name in cls.members and field.setting.help:
                    cls.members[name].docstring = griffe.Docstring(field.setting.help)
