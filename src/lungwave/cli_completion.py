"""Shell completion: a script for bash, zsh or tcsh that knows every command, option, choice, setting, shipped model.

The script holds all words, so pressing Tab starts no Python. tyro completes one parser; here two-word commands, the
legacy flags and ``--grid.spacing`` are known too, which are not tyro's.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lungwave.cli_options import Configured, Options, Positional
from lungwave.config import PRESETS, Config
from lungwave.shipped import ECHOES, PRIOR, RESOLVED, SHIPPED
from lungwave.types import UsageError

SHELLS = ("bash", "zsh", "tcsh")
POSITIONAL = typing.get_args(Positional[int])[1]  # how tyro marks what is given without an option
# options that take the name of a shipped model
MODELS = {"model": ECHOES + RESOLVED, "center": ECHOES, "init": PRIOR, "refine": RESOLVED}


@dataclass(frozen=True)
class Flag:
    """One option of a command."""

    name: str
    values: tuple[str, ...] = ()  # what may follow; files may, too


@dataclass(frozen=True)
class Command:
    """One command: its words, what it is for, and what may follow."""

    name: str
    purpose: str
    flags: tuple[Flag, ...]
    values: tuple[str, ...] = ()  # words in place of a file


@dataclass(frozen=True, kw_only=True)
class Completion(Options):
    """Print the completion script of a shell. Source it, or save it where the shell looks for such scripts.

    bash: source <(lungwave completion bash). zsh: source <(lungwave completion zsh), after compinit.
    tcsh: lungwave completion tcsh > ~/.lungwave.tcsh, then source that file.
    """

    shell: Positional[str]
    """bash, zsh or tcsh."""

    def work(self) -> dict[str, Any]:
        """The script."""
        return {"shell": self.shell, "script": script(self.shell)}

    def run(self) -> None:
        """Print the script alone, for the shell to read."""
        if self.json:
            super().run()
        else:
            print(script(self.shell), end="")


def script(shell: str) -> str:
    """The completion script of a shell; UsageError for one that is not known."""
    writers: dict[str, Callable[[tuple[Command, ...]], str]] = {"bash": _bash, "zsh": _zsh, "tcsh": _tcsh}
    if shell not in writers:
        near = difflib.get_close_matches(shell, SHELLS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"give {', '.join(SHELLS[:-1])} or {SHELLS[-1]}"
        raise UsageError(f"no completion for the shell '{shell}'; {hint}")
    return writers[shell](tuple(commands()))


def commands() -> Iterator[Command]:
    """Every command of the program."""
    from lungwave.cli import VERBS
    from lungwave.legacy import flags as legacy

    for name, (where, purpose) in VERBS.items():
        if name == "legacy":
            for word, (said, _, _) in legacy.COMMANDS.items():
                yield Command(f"legacy {word}", said, tuple(Flag(f) for f in _long(legacy.parser(word))))
        else:
            module, kind = where.split(".")
            yield command_of(name, purpose, getattr(importlib.import_module(f"lungwave.{module}"), kind))


def command_of(name: str, purpose: str, kind: type[Options]) -> Command:
    """The command that a class of options is."""
    hints = typing.get_type_hints(kind, include_extras=True)
    flags = [Flag("--help")]
    values: tuple[str, ...] = ()
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if POSITIONAL in getattr(hint, "__metadata__", ()):
            values = _shipped(PRIOR) if item.name == "model" else SHELLS if item.name == "shell" else ()
            continue
        word = item.name.replace("_", "-")
        flags.append(Flag(f"--no-{word}" if item.default is True else f"--{word}", _values(item.name, hint)))
    if issubclass(kind, Configured):
        flags += [Flag(f"--{key}", choices) for key, choices in _settings()]
    return Command(name, purpose, tuple(flags), values)


def _values(name: str, hint: Any) -> tuple[str, ...]:
    """What may follow an option: choices, presets, names of shipped models."""
    if name == "preset":
        return tuple(PRESETS)
    return _shipped(MODELS[name]) if name in MODELS else _choices(hint)


def _choices(hint: Any) -> tuple[str, ...]:
    """The words of every Literal in a type."""
    if typing.get_origin(hint) is Literal:
        return tuple(map(str, typing.get_args(hint)))
    return tuple(word for part in typing.get_args(hint) for word in _choices(part))


def _settings() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Dotted names of the configuration, and their choices."""
    for outer in dataclasses.fields(Config):
        table = getattr(Config(), outer.name)
        if dataclasses.is_dataclass(table):
            hints = typing.get_type_hints(type(table))
            for inner in dataclasses.fields(table):
                yield f"{outer.name}.{inner.name}", _choices(hints[inner.name])


def _shipped(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in SHIPPED.iterdir() if path.name.startswith(kinds)))


def _long(parser: Any) -> Iterator[str]:
    """Long options of an argparse parser."""
    for action in parser._actions:
        yield from (word for word in action.option_strings if word.startswith("--"))


def _families(known: tuple[Command, ...]) -> dict[str, list[Command]]:
    """Commands by their first word."""
    found: dict[str, list[Command]] = {}
    for command in known:
        found.setdefault(command.name.split()[0], []).append(command)
    return found


def _first(known: tuple[Command, ...]) -> list[tuple[str, str]]:
    """First words and what they are for; of a family, its members."""
    return [
        (word, members[0].purpose if members[0].name == word else ", ".join(m.name.split()[1] for m in members))
        for word, members in _families(known).items()
    ]


def _pairs(known: tuple[Command, ...]) -> dict[str, list[Command]]:
    """Families of two-word commands."""
    return {word: members for word, members in _families(known).items() if members[0].name != word}


def _bash(known: tuple[Command, ...]) -> str:
    pairs = _pairs(known)
    seconds = "\n".join(
        f'            {word}) _lungwave_words "{" ".join(m.name.split()[1] for m in members)}" ;;'
        for word, members in pairs.items()
    )
    flags = "\n".join(f'        "{c.name}") flags="{" ".join(f.name for f in c.flags)}" ;;' for c in known)
    values = "\n".join(
        f'        "{c.name} {f.name}") _lungwave_words "{" ".join(f.values)}"; return ;;'
        for c in known
        for f in c.flags
        if f.values
    )
    own = "\n".join(f'        "{c.name}") _lungwave_words "{" ".join(c.values)}" ;;' for c in known if c.values)
    return f"""\
# bash completion of lungwave: source <(lungwave completion bash)
_lungwave_words() {{
    COMPREPLY=($(compgen -W "$1" -- "$current"))
}}

_lungwave() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} command=${{COMP_WORDS[1]}} flags=""
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        _lungwave_words "{" ".join(word for word, _ in _first(known))} --help --version"
        return
    fi
    case $command in {" | ".join(pairs)})
        if ((COMP_CWORD == 2)); then
            case $command in
{seconds}
            esac
            return
        fi
        command="$command ${{COMP_WORDS[2]}}" ;;
    esac
    case "$command $before" in
{values}
    esac
    case $command in
{flags}
    esac
    if [[ $current == -* ]]; then
        _lungwave_words "$flags"
        return
    fi
    case $command in
{own}
    esac
}}
complete -o bashdefault -o default -F _lungwave lungwave
"""


def _zsh(known: tuple[Command, ...]) -> str:
    def told(entries: list[tuple[str, str]]) -> str:
        return " ".join(_quoted(f"{word}:{said}") for word, said in entries)

    pairs = _pairs(known)
    seconds = "\n".join(
        f"            {word}) words_of=({told([(m.name.split()[1], m.purpose) for m in members])}) ;;"
        for word, members in pairs.items()
    )
    flags = "\n".join(f'        "{c.name}") flags=({" ".join(f.name for f in c.flags)}) ;;' for c in known)
    values = "\n".join(
        f'        "{c.name} {f.name}") compadd -- {" ".join(f.values)}; _files; return ;;'
        for c in known
        for f in c.flags
        if f.values
    )
    own = "\n".join(f'        "{c.name}") compadd -- {" ".join(c.values)} ;;' for c in known if c.values)
    return f"""\
#compdef lungwave
# zsh completion of lungwave: source <(lungwave completion zsh), after compinit; or as a file _lungwave in $fpath
_lungwave() {{
    local command=$words[2]
    local -a words_of flags
    if ((CURRENT == 2)); then
        words_of=({told(_first(known))})
        _describe command words_of
        return
    fi
    case $command in ({"|".join(pairs)})
        if ((CURRENT == 3)); then
            case $command in
{seconds}
            esac
            _describe command words_of
            return
        fi
        command="$command $words[3]" ;;
    esac
    case "$command $words[CURRENT-1]" in
{values}
    esac
    case $command in
{flags}
    esac
    if [[ $PREFIX == -* ]]; then
        compadd -- $flags
        return
    fi
    case $command in
{own}
    esac
    _files
}}
if [[ $funcstack[1] == _lungwave ]]; then
    _lungwave "$@"
else
    compdef _lungwave lungwave
fi
"""


def _tcsh(known: tuple[Command, ...]) -> str:
    """First words, second words, and what follows an option; tcsh cannot tell commands apart, so options are of all."""
    rules = [f"'p/1/({' '.join(word for word, _ in _first(known))})/'"]
    rules += [f"'n/{word}/({' '.join(m.name.split()[1] for m in ms)})/'" for word, ms in _pairs(known).items()]
    rules += [f"'n/{c.name}/({' '.join(c.values)})/'" for c in known if c.values and " " not in c.name]
    followers: dict[str, dict[str, None]] = {}
    for flag in (flag for command in known for flag in command.flags if flag.values):
        followers.setdefault(flag.name, {}).update(dict.fromkeys(flag.values))
    rules += [f"'n/{name}/({' '.join(words)})/'" for name, words in followers.items()]
    flags = sorted({flag.name.removeprefix("--") for command in known for flag in command.flags})
    rules += [f"'c/--/({' '.join(flags)})/'", "'p/*/f/'"]
    lines = " \\\n    ".join(rules)
    return f"""\
# tcsh completion of lungwave: lungwave completion tcsh > ~/.lungwave.tcsh; source ~/.lungwave.tcsh
complete lungwave {lines}
"""


def _quoted(text: str) -> str:
    """A word for zsh: one colon parts the word from what is said of it."""
    word, _, said = text.partition(":")
    return "'" + f"{word}:{said.replace(':', ';')}".replace("'", "'\\''") + "'"
