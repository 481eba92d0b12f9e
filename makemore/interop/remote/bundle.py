"""Collect what a model's class needs from this package's source into one file.

Of each class, only the methods are kept whose names are used, directly or indirectly, by ``forward`` and the
state. Classes of settings become plain namespaces with their properties.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

from makemore.models.base import LanguageModel

ROOTS = (
    *("__init__", "forward", "init_state", "drop_oldest", "set_document_ends"),
    *("device", "max_len", "supports_packing", "supports_streaming"),
)
BUNDLED = ("makemore.models", "makemore.types")
LEFT_OUT = ("makemore", "pydantic")
SETTINGS = '''class Settings:
    """Settings of a model, as attributes."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)
'''
Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


def modeling_code(kind: type[LanguageModel]) -> str:
    """The text of ``modeling_makemore.py`` for one kind of model."""
    modules = list(_modules(inspect.getmodule(kind)))
    definitions = [node for module in modules for node in _definitions(module)]
    kept = _reached(definitions, {kind.__name__, kind.Config.__name__})
    # Read, not imported: it needs transformers.
    wrapper = ast.parse(Path(__file__).with_name("modeling.py").read_text(encoding="utf-8"))
    factory = f'''def make_model(config: MakemoreConfig) -> Any:
    """The model, with random weights."""
    settings = {kind.Config.__name__}(**config.settings)
    model = {kind.__name__}(settings, config.vocab_size, config.bos_token_id)
    model.set_document_ends(config.document_ends)
    return model
'''
    body = [node for node in wrapper.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)][:-1]
    text = "\n\n\n".join([SETTINGS, *map(ast.unparse, kept), *map(ast.unparse, body), factory])
    imports = _imports([*map(_tree, modules), wrapper], text)
    docstring = ast.get_docstring(wrapper)
    header = f'"""{docstring}\n\nWritten by makemore from the source of its model {kind.Config().name}.\n"""'
    return "\n\n".join([header, "from __future__ import annotations", "\n".join(imports), text])


def _modules(module: ModuleType | None) -> Iterator[ModuleType]:
    """The bundled modules that a module imports, before itself."""
    seen: dict[str, ModuleType] = {}

    def visit(module: ModuleType) -> None:
        for node in _tree(module).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(BUNDLED):
                inner = importlib.import_module(node.module or "")
                if inner.__name__ not in seen:
                    visit(inner)
        seen.setdefault(module.__name__, module)

    assert module is not None
    visit(module)
    yield from seen.values()


@cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _definitions(module: ModuleType) -> Iterator[Definition]:
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef):
            yield _as_namespace(node) if node.name.endswith("Config") else node
        elif isinstance(node, ast.FunctionDef | ast.Assign | ast.AnnAssign):
            yield node


def _as_namespace(node: ast.ClassDef) -> ast.ClassDef:
    """A class of settings with nothing but its properties."""
    is_first = ast.unparse(node.bases[0]) == "ModelConfig"
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    properties = [part for part in methods if "property" in map(ast.unparse, part.decorator_list)]
    changed = copy.copy(node)
    changed.bases = [ast.Name("Settings") if is_first else node.bases[0]]
    changed.body = [ast.Expr(ast.Constant(ast.get_docstring(node) or "")), *properties]
    return changed


def _reached(definitions: Sequence[Definition], roots: set[str]) -> list[Definition]:
    """The definitions that are needed, with the methods that are needed, in their order."""
    names, attributes = set(roots), set(ROOTS)
    while True:
        kept = [_pruned(node, attributes) for node in definitions if names & _defined(node)]
        reached = {n.id for part in kept for n in _walk(part) if isinstance(n, ast.Name)}
        called = {n.attr for part in kept for n in _walk(part) if isinstance(n, ast.Attribute)}
        if reached <= names and called <= attributes:
            return kept
        names |= reached
        attributes |= called


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, which are never evaluated."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _walk(child)


def _defined(node: Definition) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def _pruned(node: Definition, attributes: set[str]) -> Definition:
    """A class without the methods and class variables that nothing needs."""
    if not isinstance(node, ast.ClassDef):
        return node
    body: list[ast.stmt] = []
    is_needed = True
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            is_needed = part.name in attributes or part.name.startswith("__")
        elif isinstance(part, ast.Assign | ast.AnnAssign):
            is_needed = bool(_defined(part) & attributes)
        if is_needed:  # or explains what is needed
            body.append(part)
    pruned = copy.copy(node)
    pruned.body = body or [ast.Pass()]
    return pruned


def _imports(trees: Sequence[ast.Module], text: str) -> list[str]:
    """The import statements of names that the text uses."""
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    lines = dict[str, None]()
    for tree in trees:
        for node in tree.body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            source = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            if source.split(".")[0] in (*LEFT_OUT, "__future__"):
                continue
            for alias in node.names:
                if (alias.asname or alias.name.split(".")[0]) in used:
                    one = ast.Import([alias]) if isinstance(node, ast.Import) else None
                    statement = one or ast.ImportFrom(node.module, [alias], 0)  # type: ignore[union-attr]
                    lines[ast.unparse(statement)] = None
    return sorted(lines)
