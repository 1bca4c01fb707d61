"""Files about the package: what other programs read of them has to have the form that they expect."""

from __future__ import annotations

import re
import tomllib
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
URI, TEXT, DOI = r"https?://\S+", r"(?s).*\S.*", r"10\.\d{4,9}/[-._;()/:A-Za-z0-9]+"
# Fields of an entry of scverse's ecosystem-packages by its schema 2.0, with what its pull request 392 added: the form of
# their text, whether they are lists of it, and whether they are required. Of tags and categories, and of licences, only
# those that this entry may need stand here.
TAGS = {
    "spatial transcriptomics", "imaging", "deep learning", "preprocessing", "segmentation", "data integration",
    "GPU acceleration", "quality control", "denoising", "data structures", "file formats", "scRNA-seq",
}  # fmt: skip
ECOSYSTEM = {
    "name": (TEXT, False, True),
    "description": (TEXT, False, True),
    "project_home": (URI, False, True),
    "documentation_home": (URI, False, True),
    "tutorials_home": (URI, False, False),
    "license": ("BSD-3-Clause|MIT|Apache-2.0", False, True),
    "primary_category": ("Imaging|Data structures|scRNA-seq|bulk RNA-seq", False, True),
    "language": ("Python|R", False, True),
    "tags": ("|".join(map(re.escape, sorted(TAGS))), True, True),
    "publications": (DOI, True, False),
    "version": (TEXT, False, True),
    # User ids of GitHub.
    "contact": (r"[A-Za-z\d](?:-?[A-Za-z\d]){0,38}", True, True),
    "logo": (r"logo\.(svg|png|webp)", False, False),
    "test_command": (TEXT, False, False),
    "category": ("core-framework|core-datastructure|core-infrastructure|ecosystem", False, True),
}
INSTALL = {"pypi": TEXT, "conda": r".+::.+", "cran": TEXT, "bioconductor": TEXT}


def faults_of_entry(entry: dict) -> list[str]:
    """Fields of an entry that are missing, unknown or of another form."""
    install = entry.get("install")
    bad = [name for name, (_, _, required) in ECOSYSTEM.items() if required and name not in entry]
    bad += [name for name in entry if name not in ECOSYSTEM and name != "install"]
    if not isinstance(install, dict) or not install:
        bad.append("install")
    else:
        bad += [f"install.{k}" for k, v in install.items() if not re.fullmatch(INSTALL.get(k, "(?!)"), str(v))]
    for name, (form, several, _) in ECOSYSTEM.items():
        if name in entry:
            values = entry[name] if several else [entry[name]]
            fine = isinstance(values, list) and values and all(isinstance(one, str) for one in values)
            if not fine or len(set(values)) < len(values) or not all(re.fullmatch(form, one) for one in values):
                bad.append(name)
    return bad


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
    assert faults_of_entry(entry) == []
    assert entry["category"] == "ecosystem"
    # What the comments name as evidence is there.
    named = set(re.findall(r"[\w./-]+\.(?:md|py|yaml|sh)\b", text.partition("\nname:")[0]))
    named = {name for name in named if "ecosystem-packages" not in name and not name.startswith("packages/")}
    assert len(named) >= 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert "## Support" in read("README.md")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", ["histology"]),
        ("tags", ["imaging", "imaging"]),
        ("tags", []),
        ("license", "BSD"),
        ("contact", ["two words"]),
        ("documentation_home", "ragst-sd.readthedocs.io"),
        ("install", {}),
        ("install", {"conda": "ragst-sd"}),
        ("category", "tool"),
        ("authors", ["someone"]),
        ("language", None),
    ],
)
def test_faults_of_an_entry_are_found(field, value):
    entry = yaml.safe_load(read("docs/ecosystem/meta.yaml"))
    wrong = {name: one for name, one in (entry | {field: value}).items() if one is not None}
    assert [fault.partition(".")[0] for fault in faults_of_entry(wrong)] == [field]


def test_actions_are_pinned_by_hash():
    uses = [
        line
        for path in (ROOT / ".github" / "workflows").glob("*.yaml")
        for line in re.findall(r"uses: .*", path.read_text())
    ]
    assert len(uses) >= 10
    assert [line for line in uses if not re.fullmatch(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)] == []


def test_pythons_of_the_index_and_pre_releases_are_tested():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    matrix = yaml.safe_load(read(".github/workflows/test.yaml"))["jobs"]["test"]["strategy"]["matrix"]
    listed = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r"Python :: 3\.\d", name)]
    assert listed == matrix["python"]
    assert any(job.get("prerelease") == "allow" for job in matrix["include"])
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(project["urls"])


def test_functions_that_leave_squidpy_are_not_used():
    text = [path for folder in ("docs", "src", "tutorials") for path in (ROOT / folder).rglob("*.*")]
    text = [path for path in (*text, ROOT / "README.md") if path.suffix in {".md", ".py", ".ipynb"}]
    assert [path.name for path in text if re.search(r"gr\.spatial_neighbors\(", path.read_text(encoding="utf-8"))] == []


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
    # And in the addresses of the package, which the release workflow looks at.
    assert "/OWNER" in read("pyproject.toml") and 'grep -n "OWNER" pyproject.toml' in read(
        ".github/workflows/release.yaml"
    )
