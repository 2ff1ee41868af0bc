"""The documentation's site: built strictly, with every page, image and public function; a broken link fails."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason='the site needs pip install "nstjax[docs]"')
pytest.importorskip("mkdocstrings", reason='the site needs pip install "nstjax[docs]"')

ROOT = Path(__file__).parent.parent


def build(root, site):
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "-d", site]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def public(module):
    """The names of a module's public functions."""
    path = ROOT / "nstjax" / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return [each.name for each in ast.parse(file.read_text()).body if isinstance(each, ast.FunctionDef)]


def test_the_site_has_every_page_and_every_public_function(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]:
        page = tmp_path / path.relative_to(ROOT).with_name(
            "index.html" if path.stem == "README" else f"{path.stem}.html"
        )
        assert path.read_text().splitlines()[0].lstrip("# ") in page.read_text()
    for notebook in ("docs/paint", "experiments/colab_tpu"):
        assert "data:image/" in (tmp_path / f"{notebook}.html").read_text()
    pages = sorted((tmp_path / "api").glob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        for name in public(page.stem):
            assert name.startswith("_") or f'id="nstjax.{page.stem}.{name}"' in text, (page.stem, name)
        assert not re.search(r'src="https?://|<link[^>]*href="https?://', text)  # nothing is loaded from elsewhere


def test_a_broken_link_fails(tmp_path):
    folder = tmp_path / "project"
    for name in ("docs", "benchmarks", "experiments", "weights", "nstjax", "tests"):
        ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in [*ROOT.glob("*.md"), ROOT / "mkdocs.yml"]:
        shutil.copy(path, folder)
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\n[nowhere](docs/nowhere.md) [no anchor](docs/painting.md#nowhere)\n")
    done = build(folder, tmp_path / "site")
    assert done.returncode == 1 and "docs/nowhere.md" in done.stderr and "#nowhere" in done.stderr
