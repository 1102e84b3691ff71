"""Each package's docstring is the map of its modules: whoever looks for something finds every one of them there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import rayflow

ROOT = Path(rayflow.__file__).parent
PACKAGES = sorted(path.parent for path in ROOT.rglob("__init__.py"))


def named(package: Path) -> set[str]:
    """Every word between backticks in a package's docstring; those of its table may hold several."""
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return {word for quoted in re.findall(r"`([^`\n]+)`", doc) for word in re.findall(r"\w+", quoted)}


def parts(package: Path) -> set[str]:
    """The modules and packages directly in a package."""
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("__")}
    return modules | {path.parent.name for path in package.glob("*/__init__.py")}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_every_module_is_in_the_map_of_its_package(package: Path) -> None:
    missing = parts(package) - named(package)
    assert not missing, (
        f"{package.relative_to(ROOT.parent)}/__init__.py does not say what these are: {sorted(missing)}"
    )


def test_a_map_that_lacks_a_module_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""What `one` and `two`, `three` are."""\n')
    for name in ("one", "two", "three", "four"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "five").mkdir()
    (tmp_path / "five" / "__init__.py").touch()
    assert parts(tmp_path) - named(tmp_path) == {"four", "five"}
