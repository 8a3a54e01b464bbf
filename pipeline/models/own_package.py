"""The file of one's own network and those beside it, imported under names of their own.

To a script its folder is where ``import blocks`` looks first. Here each build of a network makes a package of that folder, such as
``own_network_3``, and an ``import blocks`` in one of its files is compiled as an import of ``own_network_3.blocks``: two folders, and two
builds of one network, share no module, wherever and whenever the import stands. (A module's own ``__import__`` would do for all but
torch.compile, which imports by itself.) What is loaded is the content that was read, never a ``.pyc`` of a moment before.
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
_numbers = count(1)


class OwnPackage:
    """The modules of one build of a network.

    Args:
        file: Of the network.

    Attributes:
        files: Content of what was imported from the folder, by relative path with ``/``; the network's own file first.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.folder = file.absolute(), file.resolve().parent
        self.name = f"{_PREFIX}{next(_numbers)}"
        self.files: dict[str, bytes] = {}
        self._found: dict[str, Path | None] = {}
        self._known_as = _names_of(self.folder)
        _packages[self.name] = self

    def run(self) -> ModuleType:
        """Run the network's file and return it as a module; raises whatever it raises."""
        # Only a name that an import can write down is one that a neighbour may import it by.
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
        """Let ``importlib.import_module("blocks")`` find neighbours too; afterwards they are unknown again under that name."""
        before = set(sys.modules)
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            for name in [name for name in sys.modules.keys() - before if self.owns(name)]:
                self._take(sys.modules.pop(name))

    def _take(self, module: ModuleType) -> None:
        file = Path(getattr(module, "__file__", None) or "")
        if file.suffix == ".py" and file.is_relative_to(self.folder):
            self.files.setdefault(file.relative_to(self.folder).as_posix(), file.read_bytes())

    def forget(self) -> None:
        """Take the modules out of `sys.modules`; what still computes with them goes on."""
        for name in [
            name for name in sys.modules if name == self.name or name.startswith(f"{self.name}.")
        ]:
            del sys.modules[name]

    def is_as_read(self) -> bool:
        """Whether the same files would be imported now, with the same contents."""
        return all(self._find(dotted) == path for dotted, path in self._found.items()) and all(
            map(self._is_unchanged, self.files)
        )

    def _is_unchanged(self, name: str) -> bool:
        return self._path(name).is_file() and self._path(name).read_bytes() == self.files[name]

    def place_of(self, path: str) -> str | None:
        """Return the relative path of a file that was imported, None for any other path."""
        return next((name for name in self.files if str(self._path(name)) == path), None)

    def _path(self, name: str) -> Path:
        return self.file if name == self.file.name else self.folder / name

    def owns(self, name: str) -> bool:
        """Whether an absolute import of that name means a file of the folder.

        It does where the folder has a file or a folder of the top-level name, but of installed packages only what is a package itself;
        and where a project imports the folder by its own name (``nets.blocks``, ``src.nets.blocks``).
        """
        top = name.partition(".")[0]
        if top in _NEVER:
            return False
        found = self._find(top, projects=False)
        self._found[top] = self._find(top)
        if found is not None and (found.is_file() or not _is_installed(top)):
            return True
        if not any(
            name == known or name.startswith(f"{known}.") for known in self._known_as
        ) or _is_installed(top):
            return False
        self._found[name] = self._find(name)
        return self._found[name] is not None

    def _find(self, dotted: str, projects: bool = True) -> Path | None:
        """Return file or folder of a module, by its dotted name below the package."""
        if (found := _below(self.folder, dotted)) is not None or not projects:
            return found
        for known in self._known_as:
            if dotted == known or dotted.startswith(f"{known}."):
                return _below(self.folder, dotted[len(known) + 1 :])
        # ``src`` of ``src.nets.blocks`` is not of the folder, and stands for nothing but the way to it.
        return (
            self.folder if any(known.startswith(f"{dotted}.") for known in self._known_as) else None
        )

    def spec(self, fullname: str) -> ModuleSpec | None:
        """Return how a module of the package is loaded, None where there is none."""
        dotted = fullname.removeprefix(self.name).lstrip(".")
        path = self._found[dotted] = self._find(dotted) if dotted else self.folder
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
        """Read a file, remember its content, and compile it with imports of neighbours as imports of the package's."""
        content = path.read_bytes()
        name = path.name if path == self.file else path.relative_to(self.folder).as_posix()
        self.files[name] = content
        tree = _OwnImports(self).visit(ast.parse(content, str(path)))
        return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


_packages: WeakValueDictionary[str, OwnPackage] = WeakValueDictionary()


def _below(folder: Path, dotted: str) -> Path | None:
    """Return ``NAME/__init__.py``, ``NAME.py`` or the folder ``NAME``, as Python looks for them; of the folder itself for an empty name."""
    base = folder.joinpath(*filter(None, dotted.split(".")))
    files = [base / "__init__.py"] + ([base.with_name(f"{base.name}.py")] if dotted else [])
    return next((file for file in files if file.is_file()), base if base.is_dir() else None)


def _names_of(folder: Path) -> list[str]:
    """Return the dotted names by which a project may import a folder: its own, and with those of the folders above it."""
    names: list[str] = []
    for part in reversed(folder.parts[-_MOST_ABOVE:]):
        if not part.isidentifier():
            break
        names.append(".".join([part, *names[-1:]]))
    return names


def _is_installed(top: str) -> bool:
    """Whether a package of that name is installed: a folder named like one does not stand for it."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return False
    places = [*(spec.submodule_search_locations or []), spec.origin or ""] if spec else []
    return any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places)


class _OwnImports(ast.NodeTransformer):
    def __init__(self, package: OwnPackage) -> None:
        self._package = package

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if not node.level and node.module and self._package.owns(node.module):
            node.module = f"{self._package.name}.{node.module}"
        return node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        node.names = [new for alias in node.names for new in self._renamed(alias)]
        return node

    def _renamed(self, alias: ast.alias) -> list[ast.alias]:
        if not self._package.owns(alias.name):
            return [alias]
        private, top = f"{self._package.name}.{alias.name}", alias.name.partition(".")[0]
        if alias.asname or alias.name == top:
            return [ast.alias(private, alias.asname or top)]
        # ``import layers.conv`` loads conv and binds layers.
        return [ast.alias(private, top), ast.alias(f"{self._package.name}.{top}", top)]


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, package: OwnPackage) -> None:
        super().__init__(fullname, path)
        # Keeps the package known as long as any of its code is in use.
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
