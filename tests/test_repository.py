"""Files about the package: what other programs read of them has to have the form that they expect."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

# Fields of the Citation File Format 1.2.0.
CITATION_FIELDS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license",
    "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "title",
    "type", "url", "version",
}  # fmt: skip
# Kinds of fields of a form on GitHub.
FORM_FIELDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
KINDS_OF_CHANGE = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
ECOSYSTEM_REQUIRED = {
    "name", "description", "project_home", "documentation_home", "install", "license", "tags", "version", "category", "contact",
}  # fmt: skip
ECOSYSTEM_FIELDS = ECOSYSTEM_REQUIRED | {"tutorials_home", "publications", "logo", "test_command"}

pytestmark = pytest.mark.skipif(not FORMS, reason="not a clone of the repository")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_citation():
    found = yaml.safe_load(read("CITATION.cff"))
    assert set(found) <= CITATION_FIELDS
    assert {"authors", "cff-version", "message", "title"} <= set(found)
    assert found["cff-version"] == "1.2.0"
    assert found["type"] in ("software", "dataset")
    assert all("name" in author or {"family-names", "given-names"} & set(author) for author in found["authors"])
    assert found["license"] == "BSD-3-Clause"
    assert len(set(found["keywords"])) == len(found["keywords"])


def test_changelog():
    lines = read("CHANGELOG.md").splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    dated = [re.fullmatch(r"## \[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})", line) for line in releases[1:]]
    assert all(dated)
    versions = [tuple(int(part) for part in match.groups()[:3]) for match in dated if match]
    days = [date.fromisoformat(match[4]) for match in dated if match]
    assert versions == sorted(set(versions), reverse=True)
    assert days == sorted(days, reverse=True)
    assert {line[4:] for line in lines if line.startswith("### ")} <= KINDS_OF_CHANGE
    # Within a release every kind stands once.
    for part in re.split(r"^## ", "\n".join(lines), flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (\w+)$", part, flags=re.MULTILINE)
        assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_form(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert set(form) == {"blank_issues_enabled", "contact_links"}
        assert all(set(link) == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert (
        {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title", "assignees"}
    )
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids))
    assert {field["type"] for field in form["body"]} <= FORM_FIELDS
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
    for field in fields:
        if field["type"] == "dropdown":
            assert all(isinstance(option, str) for option in field["attributes"]["options"])
        if field["type"] == "checkboxes":
            assert all(set(option) <= {"label", "required"} for option in field["attributes"]["options"])


def test_there_is_a_form_for_bugs_features_and_data_sets():
    assert {path.stem for path in FORMS} == {"bug", "feature", "dataset", "config"}
    assert (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").is_file()
    assert (ROOT / "CODE_OF_CONDUCT.md").is_file()


def test_entry_for_the_scverse_ecosystem():
    text = read("docs/ecosystem/meta.yaml")
    entry = yaml.safe_load(text)
    assert ECOSYSTEM_REQUIRED <= set(entry) <= ECOSYSTEM_FIELDS
    assert entry["category"] == "ecosystem"
    assert entry["tags"] and len(set(entry["tags"])) == len(entry["tags"])
    assert set(entry["install"]) <= {"pypi", "conda", "cran", "bioconductor"}
    # What the comments name as evidence is there.
    named = set(re.findall(r"[\w./-]+\.(?:md|py|yaml|sh)\b", text.partition("\nname:")[0]))
    named = {name for name in named if "ecosystem-packages" not in name and not name.startswith("packages/")}
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert "## Support" in read("README.md")


def test_version_stands_in_tags_only():
    project = read("pyproject.toml")
    assert 'dynamic = ["version"]' in project
    assert 'source = "vcs"' in project
    assert not re.search(r"^__version__ =", read("src/ragst_sd/__init__.py"), flags=re.MULTILINE)


def test_owner_of_the_repository_is_open_in_one_file_only():
    tracked = [
        path
        for folder in ("docs", ".github")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in {".md", ".yaml", ".yml"}
    ]
    open_in = [path.relative_to(ROOT).as_posix() for path in tracked if "/OWNER" in path.read_text(encoding="utf-8")]
    assert open_in == ["docs/ecosystem/meta.yaml"]
