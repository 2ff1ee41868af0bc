"""The documentation's site: `mkdocs build` (mkdocs.yml). Pages keep their paths in the repository, so that links lead
to the same on GitHub."""

import json
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("*.md", "docs/*.md", "docs/*.jpg", "docs/*.png", "benchmarks/*.md", "benchmarks/*.png", "weights/**/*.md")
LINKED = ("tests/test_documents.py", "nstjax/pictures/*")  # what pages link to beside

API = "---\ntitle: {0}\n---\n\n::: nstjax.{0}\n"


def on_files(files, config):
    """Replace the files of docs/ by those of the repository, and add a page for each module that `nav` names."""
    theme = [file for file in files if file.src_dir != config["docs_dir"]]
    paths = sorted(path for pattern in (*PAGES, *LINKED) for path in ROOT.glob(pattern))
    own = [File(str(path.relative_to(ROOT)), str(ROOT), config["site_dir"], False) for path in paths]
    modules = [page for entry in config["nav"] for page in entry.get("API", [])]
    api = [File.generated(config, page, content=API.format(Path(page).stem)) for page in modules]
    for notebook in [*ROOT.glob("docs/*.ipynb"), *ROOT.glob("experiments/*.ipynb")]:
        page = str(notebook.relative_to(ROOT).with_suffix(".md"))
        api.append(File.generated(config, page, content=markdown(json.loads(notebook.read_text()))))
    return Files([*theme, *own, *api])


def on_page_markdown(markdown, **_):
    """Link to a notebook's page, where GitHub shows the notebook itself."""
    return markdown.replace(".ipynb)", ".md)")


def markdown(notebook):
    """A notebook's cells as a page, with the text and the images that they put out."""
    return "\n\n".join(part for cell in notebook["cells"] for part in parts(cell))


def parts(cell):
    """A cell's Markdown: its source, and what it put out."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        image = next((kind for kind in data if kind.startswith("image/")), None)
        if image:
            encoded = "".join(data[image]).replace("\n", "")
            yield f"![Output](data:{image};base64,{encoded})"
        elif text := "".join(output.get("text") or data.get("text/plain", "")):
            yield f"```text\n{text.rstrip()}\n```"
