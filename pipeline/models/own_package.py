"""The file of the user's own network and the files beside it, imported under names of their own.

When a script is run, ``import blocks`` looks in the script's folder first. Here each build of a
network makes a package of that folder, such as ``own_network_3``, and an ``import blocks`` in one
of its files is compiled as an import of ``own_network_3.blocks``. So two folders, and two builds of
one network, share no module, wherever and whenever the import stands. (A module's own
``__import__`` would do for everything except torch.compile, which imports by itself.) What is
loaded is the content that was read, never a ``.pyc`` of a moment before.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType
from weakref import WeakValueDictionary

_PREFIX = "own_network_"
_NEVER = {*sys.stdlib_module_names, "pipeline"}
"""Top-level names that are no neighbours, whatever stands in the folder."""
_MOST_ABOVE = 4
"""Parts of a folder's path that may stand in the names by which a project imports the folder."""
_numbers = count(1)


class OwnPackage:
    """The modules of one build of a network.

    Args:
        file: The file of the network.

    Attributes:
        files: Contents of the files that were imported from the folder, by relative path with
            ``/``. The network's own file comes first.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.folder = file.resolve().parent
        self.name = f"{_PREFIX}{next(_numbers)}"
        self.files: dict[str, bytes] = {}
        self._found: dict[str, Path | None] = {}
        self._known_as = _names_of(self.folder)
        _packages[self.name] = self

    def run(self) -> ModuleType:
        """Run the network's file and return it as a module; raise whatever it raises."""
        # A neighbour may import the file by its name, if an import statement can write that name.
        stem = self.file.stem if self.file.stem.isidentifier() else "network"
        spec = self._spec_of_file(f"{self.name}.{stem}", self.file)
        assert spec.loader is not None
        importlib.import_module(self.name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Let ``importlib.import_module("blocks")`` find neighbours too.

        After the block they are unknown again under that name.
        """
        before = set(sys.modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            own = [name for name in sys.modules.keys() - before if self.owns(name)]
            for name in own:
                self._take_file(sys.modules.pop(name))

    def _take_file(self, module: ModuleType) -> None:
        file = Path(getattr(module, "__file__", None) or "")
        if file.suffix == ".py" and file.is_relative_to(self.folder):
            self.files.setdefault(file.relative_to(self.folder).as_posix(), file.read_bytes())

    def forget(self) -> None:
        """Remove the modules from `sys.modules`. Code that still uses them goes on."""
        own = [name for name in sys.modules if _is_within(name, self.name)]
        for name in own:
            del sys.modules[name]

    def is_as_read(self) -> bool:
        """Whether the same files would be imported now, with the same contents."""
        is_same = all(self._find(dotted) == path for dotted, path in self._found.items())
        return is_same and all(map(self._is_unchanged, self.files))

    def _is_unchanged(self, name: str) -> bool:
        return self._path(name).is_file() and self._path(name).read_bytes() == self.files[name]

    def place_of(self, path: str) -> str | None:
        """Return the relative path of a file that was imported, None for any other path."""
        for name in self.files:
            if str(self._path(name)) == path:
                return name
        return None

    def _path(self, name: str) -> Path:
        return self.file if name == self.file.name else self.folder / name

    def owns(self, name: str) -> bool:
        """Whether an absolute import of that name means a file of the folder.

        It does if the folder has a file of the top-level name, or a folder of that name and no
        installed package is named like it. A folder that is a package (with ``__init__.py``) counts
        as a file. It also does if a project imports the folder by the folder's own name
        (``nets.blocks``, ``src.nets.blocks``).
        """
        top = name.partition(".")[0]
        if top in _NEVER:
            return False
        neighbour = _find_below(self.folder, top)
        self._found[top] = self._find(top)
        if neighbour is not None and (neighbour.is_file() or not _is_installed(top)):
            return True
        is_known = any(_is_within(name, known) for known in self._known_as)
        if not is_known or _is_installed(top):
            return False
        self._found[name] = self._find(name)
        return self._found[name] is not None

    def _find(self, dotted: str) -> Path | None:
        """Return file or folder of a module, by its dotted name below the package."""
        found = _find_below(self.folder, dotted)
        if found is not None:
            return found
        for known in self._known_as:
            if _is_within(dotted, known):
                return _find_below(self.folder, dotted[len(known) + 1 :])
        # ``src`` of ``src.nets.blocks`` is no part of the folder. It only leads to the folder.
        if any(known.startswith(f"{dotted}.") for known in self._known_as):
            return self.folder
        return None

    def spec(self, fullname: str) -> ModuleSpec | None:
        """Return how a module of the package is loaded, or None if there is no such module."""
        dotted = fullname.removeprefix(self.name).lstrip(".")
        path: Path | None = self.folder
        if dotted:
            path = self._found[dotted] = self._find(dotted)
        if path is None:
            return None
        if path.is_file():
            return self._spec_of_file(fullname, path)
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(path)]
        return spec

    def _spec_of_file(self, fullname: str, path: Path) -> ModuleSpec:
        inside = [str(path.parent)] if path.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(
            fullname,
            path,
            loader=_Loader(fullname, str(path), self),
            submodule_search_locations=inside,
        )
        assert spec is not None
        return spec

    def compile(self, path: Path) -> CodeType:
        """Read a file, remember its content, and compile it.

        Its imports of neighbours are compiled as imports of the package's modules.
        """
        content = path.read_bytes()
        name = path.name if path == self.file else path.relative_to(self.folder).as_posix()
        self.files[name] = content
        tree = _OwnImports(self).visit(ast.parse(content, str(path)))
        return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


_packages: WeakValueDictionary[str, OwnPackage] = WeakValueDictionary()


def _is_within(dotted: str, package: str) -> bool:
    """Whether a dotted name is that of a package, or of a module in it."""
    return dotted == package or dotted.startswith(f"{package}.")


def _find_below(folder: Path, dotted: str) -> Path | None:
    """Return ``NAME/__init__.py``, ``NAME.py`` or the folder ``NAME``, as Python looks for them.

    For an empty name it is the ``__init__.py`` of the folder, or the folder itself.
    """
    base = folder.joinpath(*filter(None, dotted.split(".")))
    files = [base / "__init__.py"]
    if dotted:
        files.append(base.with_name(f"{base.name}.py"))
    for file in files:
        if file.is_file():
            return file
    return base if base.is_dir() else None


def _names_of(folder: Path) -> list[str]:
    """Return the dotted names by which a project may import a folder.

    They are its own name, alone and after the names of folders above it: ``nets``, ``src.nets``.
    """
    names: list[str] = []
    for part in reversed(folder.parts[-_MOST_ABOVE:]):
        if not part.isidentifier():
            break
        names.append(f"{part}.{names[-1]}" if names else part)
    return names


def _is_installed(top: str) -> bool:
    """Whether a package of that name is installed: a folder of that name does not replace it."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return False
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or []), spec.origin or ""]
    return any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


class _OwnImports(ast.NodeTransformer):
    def __init__(self, package: OwnPackage) -> None:
        self._package = package

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if not node.level and node.module and self._package.owns(node.module):
            node.module = f"{self._package.name}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        names: list[ast.alias] = []
        for alias in node.names:
            names += self._rename(alias)
        node.names = names
        return node

    def _rename(self, alias: ast.alias) -> list[ast.alias]:
        if not self._package.owns(alias.name):
            return [alias]
        private = f"{self._package.name}.{alias.name}"
        top = alias.name.partition(".")[0]
        if alias.asname or alias.name == top:
            return [ast.alias(private, alias.asname or top)]
        # ``import layers.conv`` loads conv and binds layers.
        return [ast.alias(private, top), ast.alias(f"{self._package.name}.{top}", top)]


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, package: OwnPackage) -> None:
        super().__init__(fullname, path)
        # This reference keeps the package known as long as any of its code is in use.
        self._package = package

    def get_code(self, fullname: str) -> CodeType:
        return self._package.compile(Path(self.path))


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = _packages.get(fullname.partition(".")[0])
        return package.spec(fullname) if package else None


sys.meta_path.insert(0, _Finder())
