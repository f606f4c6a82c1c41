"""Where the text of a chat template comes from: pyft's own by name, or a file that ends in .jinja."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pyft.data.chat.builtin import BUILTIN_TEMPLATES, BuiltinTemplate
from pyft.errors import ConfigError

# <|end|>, <end_of_turn>; but not <tool_call>, which has a </tool_call>.
_SPELLED = re.compile(r"<\|[^\s<>|'\"{}]+\|>|<[a-z]+(?:_[a-z]+)+>")


def find_template(name: str) -> BuiltinTemplate:
    """Find a template that does not come with a tokenizer: a built-in, or a .jinja file.

    The control tokens of a file are those written `<|so|>` or `<so_so>`.
    """
    if is_file_name(name):
        source = read_template(name)
        spelled = dict.fromkeys(_SPELLED.findall(source))
        return BuiltinTemplate(source, tuple(token for token in spelled if f"</{token[1:]}" not in source))
    if name not in BUILTIN_TEMPLATES:
        near = difflib.get_close_matches(name, BUILTIN_TEMPLATES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no template {name!r} (model.template): {hint}built in are "
            f"{', '.join(BUILTIN_TEMPLATES)}; a file's name ends in .jinja"
        )
    return BUILTIN_TEMPLATES[name]


def is_file_name(name: str | None) -> bool:
    """Return whether a template's name is the path of a file; None is the tokenizer's own."""
    return name is not None and name.endswith(".jinja")


def read_template(path: str) -> str:
    """Read a file of Jinja text."""
    where = f"model.template {path}"
    try:
        source = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"no such template file ({where}): write the path of a .jinja file") from None
    except IsADirectoryError:
        raise ConfigError(f"it is a folder ({where}): write the path of a .jinja file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"it is not UTF-8 at byte {error.start} ({where}): save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror} ({where}): make it readable") from None
    if not source.strip():
        raise ConfigError(f"the template file is empty ({where}): write Jinja text into it")
    return source
