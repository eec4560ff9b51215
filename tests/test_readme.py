import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_ci_runs_the_readmes_test_command():
    blocks = (ROOT / "README.md").read_text().split("```bash\n")[1:]
    commands = [block.partition("\n```")[0] for block in blocks]
    (test_command,) = [command for command in commands if command.endswith("pytest")]
    assert f"\n{test_command}\n" in (ROOT / ".ci" / "run").read_text()


def test_no_document_has_an_unfilled_placeholder():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("experiments/*.py")]:
        assert not re.search(r"@[A-Z]+@", path.read_text()), path


def test_pictures_and_files_linked_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE)}
    assert all(link[1:] in anchors if link.startswith("#") else (ROOT / link).exists() for link in links)
