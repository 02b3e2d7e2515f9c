from hypothesis import given, strategies as st

from services.ingest.folder_documents import plan
from services.ingest.folder_files import Listing, Selection, Stat

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
states = st.dictionaries(paths, st.builds(Stat, st.integers(1, 3), st.integers(0, 1)), max_size=6)


@given(states, states)
def test_reading_and_forgetting_what_is_planned_makes_the_known_equal_to_what_is_there(
    known: dict[str, Stat], found: dict[str, Stat]
) -> None:
    todo = plan(known, Listing(found, [], []))
    after = {path: stat for path, stat in known.items() if path not in todo.gone}
    after.update({path: found[path] for path in todo.read})
    assert after == found


@given(states)
def test_nothing_changed_means_nothing_to_do(known: dict[str, Stat]) -> None:
    assert plan(known, Listing(known, [], [])) == ([], [])


@given(states, st.lists(paths, max_size=2))
def test_what_could_not_be_looked_at_is_not_gone(known: dict[str, Stat], unreadable: list[str]) -> None:
    todo = plan(known, Listing({}, unreadable, []))
    assert not any(path == folder or path.startswith(folder + "/") for path in todo.gone for folder in unreadable)


def test_patterns_match_names_and_paths() -> None:
    selection = Selection(["*.md", "notes/**/*.txt"], ["drafts/*", "old.md"])
    wanted = ["a.md", "x/y/a.md", "notes/x/a.txt"]
    unwanted = ["a.txt", "drafts/a.md", "old.md", "x/old.md", ".a.md", "x/.git/a.md", "a.md~"]
    assert [path for path in [*wanted, *unwanted] if selection.wants(path)] == wanted


def test_a_pattern_for_all_folders_holds_for_the_top_one_too() -> None:
    assert Selection(["**/*.md"], []).wants("a.md")
    assert Selection(["**/*.md"], []).wants("x/a.md")
