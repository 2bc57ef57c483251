"""What the site says is so: every public name has its place in the reference, quoted error messages exist, and the
code of the pages for users runs. (`mkdocs build --strict` checks all links and references, in .ci/run.)"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def public_names(module):
    """What a module is meant to be read for: names it re-exports as `X as X`, and functions and classes of its own."""
    for node in ast.parse((ROOT / "mlem_jax" / module).read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.asname == alias.name)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_every_public_name_is_in_the_reference_once():
    pages = "\n".join(path.read_text() for path in (DOCS / "api").rglob("*.md"))
    documented = re.findall(r"^::: (\S+)", pages, re.M)
    assert len(documented) == len(set(documented))
    modules = {"": "__init__.py", "diffusion.": "diffusion/__init__.py", "plot.": "plot.py"}
    wanted = {f"mlem_jax.{prefix}{name}" for prefix, path in modules.items() for name in public_names(path)}
    assert set(documented) - wanted == set() and wanted - set(documented) == set()


def test_every_page_is_reachable():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    pages |= {f"examples/{path.name}" for path in ROOT.glob("notebooks/*.ipynb")}
    assert {page for page in pages if f"- {page}\n" not in navigation} == set()


def test_quoted_error_messages_are_in_the_source():
    strings = []
    for path in (ROOT / "mlem_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    quoted = re.findall(r"^### (.*)$", (DOCS / "faq.md").read_text(), re.M)
    assert len(quoted) > 10
    for message in quoted:
        found = any(message in text for text in strings)
        assert found or message == "The maximum number of solver steps was reached", message


def test_the_files_to_copy_are_there():
    named = re.findall(r"`(mlem_jax/[\w/]+\.py)`", (DOCS / "extending.md").read_text())
    assert len(named) > 5 and [path for path in named if not (ROOT / path).is_file()] == []


def test_the_table_of_a_calibrations_columns_is_the_reports():
    report = (ROOT / "mlem_jax" / "_calibration" / "report.py").read_text()
    printed = re.findall(r'^        \("([^"]+)", \d+, ', report, re.M)
    table = re.findall(r"^\| ([^|]+) \|", (DOCS / "how-to" / "reading-a-calibration.md").read_text(), re.M)
    assert printed and table[1:] == printed


def code_of(path):
    return "\n".join(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S))


def test_the_readme_drop_in_runs():
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("[start:drop-in]") : readme.index("[end:drop-in]")]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    scope = {}
    exec(code, scope)
    exact = scope["diffrax"].diffeqsolve(
        scope["term"], scope["diffrax"].Euler(), 0.0, 2.0, 0.01, scope["jnp"].ones(4)
    )
    assert abs(scope["sol"].ys - exact.ys).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("page", ["own-sde", "own-network", "maxdiffusion"])
def test_the_code_of_a_how_to_page_runs(page, capsys):
    code = code_of(DOCS / "how-to" / f"{page}.md")
    assert code.count("import") > 3
    exec(compile(code, page, "exec"), {"__name__": page})
