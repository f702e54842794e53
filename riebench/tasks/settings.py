"""Method configurations: YAML files of methods, and plug-ins with methods.

Files alone decide which configurations exist: the official ones in `baselines/` and those that a user names. A
configuration may name a Python file, its plugin, that registers the method; it is run once per process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from riebench.blocks import short_name
from riebench.errors import ForeignExitError, RiebenchError, TaskFileError, foreign_code, near_match
from riebench.registry import METHODS
from riebench.tasks.plugins import PluginSources, find_sources, run_sources
from riebench.tasks.schema import Setting
from riebench.tasks.suites import SHARED_SETTINGS, data_root, suite_name
from riebench.utils.terminal import print_line
from riebench.utils.yaml_files import load_yaml, validate

FALLBACK_SETTINGS = "sdxl"
"""Name of the suite whose configurations serve a suite without configurations of its own."""

MAIN_SET = "main"
"""Name of the set for the quick main job; further sets lie in folders beside it."""

_loaded_plugins: dict[Path, str] = {}
"""Plugin file -> SHA-256 of what was run: its own file and the user's modules that it imports."""


def load_settings(
    suite: str, names: Iterable[str] = (), settings_set: str = MAIN_SET, *, trust_plugins: bool = False
) -> tuple[Setting, ...]:
    """Read configurations given by name or by path.

    Args:
        suite: the suite to whose official configurations the names refer.
        names: names or paths of YAML files; empty for all official configurations of the set.
        settings_set: the name of one of the suite's sets of configurations (see `settings_folder`).
        trust_plugins: run plug-ins that lie outside their configuration's folder too.

    Raises:
        RiebenchError: for an unknown name (with the nearest match) or a name given twice.
        TaskFileError: for a file that cannot be used.
    """
    paths = [setting_path(name, suite, settings_set) for name in names] or _setting_files(suite, settings_set)
    settings = [load_setting_file(path, trust_plugins=trust_plugins) for path in paths]
    repeated = {s.name for s in settings if sum(s.name == other.name for other in settings) > 1}
    if repeated:
        raise RiebenchError(f"configuration {sorted(repeated)[0]!r} is given twice")
    return tuple(settings)


def setting_path(name: str, suite: str, settings_set: str = MAIN_SET) -> Path:
    """Return a configuration's file by name or path; nothing in it is read.

    Args:
        name: an official configuration's name, or the path of a YAML file.
        suite: see `load_settings`.
        settings_set: likewise.

    Raises:
        RiebenchError: for an unknown name (with the nearest match) or a file that is not there.
    """
    known = setting_names(suite, settings_set)
    path = Path(name).expanduser()
    if name in known:
        return settings_folder(suite, settings_set) / f"{name}.yaml"
    if path.suffix not in (".yaml", ".yml"):
        raise RiebenchError(f"unknown configuration {name!r}{_unknown_setting_hint(name, suite, known)}")
    if not path.is_file():
        raise RiebenchError(f"there is no file {name}; official configurations are called by name, without .yaml")
    return path


def load_setting_file(path: Path, *, trust_plugins: bool = False) -> Setting:
    """Read one configuration file; its name is the file's name.

    If it names a plug-in, that file is run; a line on standard error says so first.

    Args:
        path: the file.
        trust_plugins: run a plug-in that lies outside the configuration's folder too.

    Raises:
        TaskFileError: naming file, key and nearest match.
    """
    data = load_yaml(path)
    if "name" in data:
        raise TaskFileError(f"{path}: name: follows from the file's name; leave the key out")
    if "plugin_sha256" in data:
        raise TaskFileError(f"{path}: plugin_sha256: follows from the plugin's file; leave the key out")
    setting = validate(Setting, {**data, "name": path.stem}, path)
    if setting.plugin is not None:
        setting = _with_plugin(setting, path, trust_plugins)
    setting = make_setting(setting.model_dump(), path)
    if setting.method not in METHODS:
        raise TaskFileError(
            f"{path}: method: unknown method {setting.method!r}{near_match(setting.method, METHODS.names())}"
        )
    return setting


def make_setting(stated: Mapping[str, Any], where: Path) -> Setting:
    """Return the setting that some fields state, with the short names of its blocks.

    Args:
        stated: field -> value.
        where: its file, or what stands for it in messages.

    Raises:
        TaskFileError: naming `where`, key and nearest match.
    """
    setting = validate(Setting, dict(stated), where)
    try:
        # One block has one name in units and folders, however it is spelt.
        blocks = [short_name(block) for block in setting.blocks]
    except RiebenchError as error:
        raise TaskFileError(f"{where}: blocks: {error}") from error
    return validate(Setting, {**setting.model_dump(), "blocks": blocks}, where)


def settings_folder(suite: str, settings_set: str = MAIN_SET) -> Path:
    """Return the folder with the official configurations for a suite.

    It is the suite's own, or SDXL's for suites without one.

    Args:
        suite: a shipped suite's name, or a folder.
        settings_set: "main" for `baselines/<suite>/`, any other for `baselines/<suite>-<set>/`.

    Raises:
        RiebenchError: if there is no such set; names the nearest match.
    """
    main = _main_settings(suite)
    known = settings_sets(suite)
    if settings_set not in known:
        raise RiebenchError(f"unknown set of configurations {settings_set!r}{near_match(settings_set, known)}")
    return main if settings_set == MAIN_SET else main.with_name(f"{main.name}-{settings_set}")


def settings_sets(suite: str) -> tuple[str, ...]:
    """Return the names of a suite's sets of official configurations, main first."""
    main = _main_settings(suite)
    return (MAIN_SET, *sorted(path.name.removeprefix(f"{main.name}-") for path in main.parent.glob(f"{main.name}-*")))


def setting_names(suite: str, settings_set: str = MAIN_SET) -> tuple[str, ...]:
    """Return the names of the official configurations of one set for a suite."""
    return tuple(path.stem for path in _setting_files(suite, settings_set))


def _setting_files(suite: str, settings_set: str) -> list[Path]:
    return sorted(settings_folder(suite, settings_set).glob("*.yaml"), key=lambda path: path.stem)


def _main_settings(suite: str) -> Path:
    name = suite_name(suite)
    own = data_root() / "baselines" / SHARED_SETTINGS.get(name, name)
    return own if own.is_dir() else own.with_name(FALLBACK_SETTINGS)


def _unknown_setting_hint(name: str, suite: str, known: Iterable[str]) -> str:
    """Return what to do about an unknown name of a configuration.

    The hint names the set of configurations that has it, or the nearest name.
    """
    for other in settings_sets(suite):
        if name in setting_names(suite, other):
            return f"; it is in another set: --settings-set {other}"
    return f"{near_match(name, known)}; a YAML file's path works too"


def load_setting_plugin(setting: Setting) -> None:
    """Run a configuration's plugin, if it has one, in this process.

    The method of a configuration with a hash and no file is a function of the running process.

    Raises:
        RiebenchError: see `load_plugin`; also if file or function is not the one the configuration was made with.
    """
    if setting.plugin is not None:
        if load_plugin(Path(setting.plugin)) != setting.plugin_sha256:
            raise RiebenchError(f"plugin {setting.plugin} has changed since the configuration was read; start again")
    elif setting.plugin_sha256 is not None:
        _check_defined(setting)


def _check_defined(setting: Setting) -> None:
    """Check that a configuration's function is the one that is defined here."""
    if setting.method not in METHODS.defined():
        raise RiebenchError(
            f"the method {setting.method!r} of {setting.name} is a function of a Python session, and not defined in "
            "this one; define it, or put it into a plug-in file"
        )
    if METHODS.get(setting.method).source_sha256 != setting.plugin_sha256:
        raise RiebenchError(
            f"the method {setting.method!r} was defined anew since the configuration {setting.name} was made; "
            "make the configuration again"
        )


def load_plugin(path: Path) -> str:
    """Run a Python file once, so that the methods it registers can be used.

    Args:
        path: the file. It may import modules beside it.

    Returns:
        SHA-256 of the file, with the user's modules that it imports if there are any (`PluginSources.digest`), for the
        run's identity: changed code makes other pictures.

    Raises:
        RiebenchError: if it is missing, fails, registers nothing, takes a shipped method's name, or has changed since
            it was run.
    """
    path = path.expanduser().resolve()
    sources = _plugin_sources(path)
    if path in _loaded_plugins:
        if _loaded_plugins[path] != sources.digest:
            raise RiebenchError(f"plugin {path} or a module that it imports has changed since it was read; start again")
        return sources.digest
    before = METHODS.names()
    for name in METHODS.shipped():
        # Shipped methods are imported only when used; with all imported now, a plugin that takes one of their names
        # is noticed.
        METHODS.get(name)
    # Another plugin may have imported this one, and its methods with it.
    is_new = _run_plugin(sources)
    if is_new and METHODS.names() == before:
        raise RiebenchError(f"plugin {path} registers no method; put @method(NAME, access=...) above a function")
    # A plugin may name folders of modules itself, which are known once it has run.
    _loaded_plugins[path] = _plugin_sources(path).digest
    return _loaded_plugins[path]


def _plugin_sources(path: Path) -> PluginSources:
    try:
        return find_sources(path)
    except OSError as error:
        raise RiebenchError(f"plugin {error.filename or path}: {error.strerror}") from error


def _with_plugin(setting: Setting, path: Path, trusted: bool) -> Setting:
    """Return a configuration with its plugin run and the plugin's hash filled in."""
    folder = path.resolve().parent
    plugin = folder / Path(str(setting.plugin)).expanduser()
    # A configuration from elsewhere may bring its own code, but may not choose among the files of this machine.
    if not trusted and not plugin.resolve().is_relative_to(folder):
        raise TaskFileError(
            f"{path}: plugin {plugin.resolve()} lies outside the configuration's folder, and was not run; put it "
            "beside the configuration, or give --trust-plugins if you know what it does"
        )
    if plugin.resolve() not in _loaded_plugins:
        print_line(f"running the plug-in {plugin.resolve()}, which {path} names", err=True)
    try:
        digest = load_plugin(plugin)
    except RiebenchError as error:
        raise TaskFileError(f"{path}: {error}") from error
    return setting.model_copy(update={"plugin": str(plugin), "plugin_sha256": digest})


def _run_plugin(sources: PluginSources) -> bool:
    """Run a plugin's file as a module; False if that was done already."""
    path = sources.path
    if path.suffix != ".py":
        raise RiebenchError(f"plugin {path} is no Python file; its name must end in .py")
    fresh = not any(other.parent == path.parent for other in _loaded_plugins)
    try:
        with foreign_code(f"plugin {path}"):
            return run_sources(sources, fresh=fresh)
    except ForeignExitError:
        raise
    except RiebenchError as error:
        raise RiebenchError(f"plugin {path} fails: {error}") from error
    except Exception as error:
        raise RiebenchError(f"plugin {path} fails: {type(error).__name__}: {error}") from error
