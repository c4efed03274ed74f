"""Every sentence of docs/security.md is held by tests: which, this table says, and that they are there is checked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "security.md"

FOLDERS, FORGED = "runtime/test_checkpoint_folders.py", "trainer/test_forged_checkpoints.py"
FILES, COMMAND = "runtime/test_checkpoint.py", "cli/test_train_folders.py"

#: sentence → the tests that hold it, as "file::test"
CHECKPOINTS = {
    "A checkpoint may come from anybody.": [f"{FILES}::test_damage_is_told_in_one_line"],
    "Nothing in it is unpickled, and nothing in it is run.": [
        "test_security.py::test_nothing_is_unpickled",
        f"{COMMAND}::test_a_folder_runs_no_code_by_itself",
    ],
    "Whoever writes one can give you wrong weights, and no more than that.": [
        f"{FORGED}::test_what_is_right_is_taken",
        f"{FORGED}::test_what_is_not_for_its_place_is_refused_before_anything_is_moved",
    ],
    "Every file of a checkpoint has a SHA-256 digest, which is checked before anything in the file is used.": [
        f"{FILES}::test_damage_is_told_in_one_line",
        f"{FILES}::test_a_foreign_safetensors_file_in_its_place",
    ],
    "Digests find damage.": [f"{FILES}::test_damage_is_told_in_one_line"],
    "They are no signature: whoever changes a checkpoint can change its digests too.": [
        f"{FORGED}::test_what_is_right_is_taken"
    ],
    "Every tensor is held against the shape, the dtype and the name of what it is to become, before any is put in its "
    "place.": [
        f"{FORGED}::test_what_is_not_for_its_place_is_refused_before_anything_is_moved",
        f"{FORGED}::test_a_buffer_of_another_dtype_is_refused",
        f"{FORGED}::test_of_an_optimiser_of_ones_own_what_is_like_the_parameter_is_held_against_it",
    ],
    "What another worker hands over is held against its place in the same way.": [
        f"{FORGED}::test_what_another_worker_hands_over_is_held_against_its_place_too",
        f"{FORGED}::test_a_whole_model_from_another_worker_is_too",
        f"{FORGED}::test_options_from_another_worker_are_too",
    ],
    "A pipe, a device, a socket or a folder in the place of a file is refused without being opened.": [
        f"{FOLDERS}::test_what_is_no_plain_file_is_not_read",
        f"{FOLDERS}::test_a_socket_is_none_either",
        f"{COMMAND}::test_a_configuration_that_is_none",
    ],
    "A file that is larger than it can be is refused before it is read.": [
        f"{FOLDERS}::test_a_file_of_a_hundred_gigabytes_is_refused_at_once",
        f"{FOLDERS}::test_so_is_one_that_its_own_record_and_header_agree_with",
        f"{FOLDERS}::test_a_header_of_a_million_entries_is_refused_at_once",
        f"{COMMAND}::test_a_configuration_that_is_none",
    ],
    "A run folder names the experiment that was run.": [f"{COMMAND}::test_it_does_when_the_user_says_so"],
    "`syngrad train --resume FOLDER` runs a Python file that the folder names only if you name the file yourself "
    "beside it, or add `--trust`.": [
        f"{COMMAND}::test_a_folder_runs_no_code_by_itself",
        f"{COMMAND}::test_it_does_when_the_user_says_so",
    ],
    "A built-in experiment needs neither.": [f"{COMMAND}::test_what_is_built_in_is_nobodys_code"],
    "Workers that are started again within a run are not asked: you have named the experiment when the run began.": [
        "cli/test_train_workers.py::test_a_killed_worker_is_started_again_and_the_run_goes_on"
    ],
    "A file that you give as `--config` is believed: an experiment that it names is run.": [
        "cli/test_train.py::test_a_results_file_runs_again"
    ],
    "Your own files are safe from a run that saves beside them.": [
        f"{FOLDERS}::test_a_folder_named_by_digits_is_somebodys_own"
    ],
    "Only a folder with Syngrad's own record in it, under the name that it was written under, is removed as an old "
    "checkpoint.": [
        f"{FOLDERS}::test_a_folder_named_by_digits_is_somebodys_own",
        f"{FOLDERS}::test_one_is_known_by_what_is_in_it",
    ],
    "What you put into a checkpoint's folder stays, and so does what a link leads to.": [
        f"{FOLDERS}::test_what_somebody_puts_into_a_checkpoint_stays",
        f"{FOLDERS}::test_a_link_and_what_it_leads_to_stay",
    ],
    "While a run saves into a folder, another one is refused there.": [
        "trainer/test_resume_folders.py::test_a_second_run_is_refused_while_one_saves_there_and_goes_on_when_it_is_killed",
        f"{COMMAND}::test_two_runs_begun_at_once_do_not_share_a_folder",
    ],
    "The lock ends with the process that holds it.": [
        f"{FOLDERS}::test_a_folder_that_another_process_holds_is_refused_until_that_is_gone",
        f"{FOLDERS}::test_a_forked_process_does_not_hold_what_its_parent_held",
    ],
    "Files are as readable as your mask allows: whoever may read the folder may read the model.": [
        f"{FILES}::test_the_files_are_as_readable_as_the_mask_allows"
    ],
}
STORE, STRANGERS, CROWDS = "distributed/test_store.py", "links/test_strangers.py", "links/test_admission.py"
ZEROMQ, WORLD = "links/test_zeromq.py", "distributed/test_world.py"
#: what follows from the sentences before it
ADVICE = ["test_security.py::test_every_sentence_is_held_by_tests"]
LINKS = {
    "Every process of a run but the first listens for the one before it, which connects to it: that is a link.": [
        "contracts/test_links.py::test_a_frame_arrives_as_it_was_sent",
    ],
    "The processes meet at torchrun's key-value store, before they are linked and again when they are started anew.": [
        "distributed/test_torchrun.py::test_processes_meet_again_after_a_restart",
    ],
    "A run under way does not need the store.": [f"{STORE}::test_a_run_goes_on_while_a_stranger_writes_into_its_store"],
    "Nothing that comes over a link or out of the store is unpickled, and nothing of it is run.": [
        "test_security.py::test_nothing_is_unpickled",
        "links/test_frame_format.py::test_what_is_no_frame_is_refused",
        "distributed/test_rendezvous.py::test_foreign_values_are_refused",
    ],
    "What a frame claims is held against what has come, before memory is taken for it.": [
        "links/test_monitored_socket.py::test_a_stranger_takes_no_memory_by_what_he_claims",
        "links/test_frame_format.py::test_truncation",
    ],
    "On one host `syngrad train --workers` opens links and store on the loopback address alone.": [
        "distributed/test_launch.py::test_nobody_beyond_this_host_reaches_the_store_of_one_launcher",
        f"{WORLD}::test_on_one_host_nobody_else_can_reach_a_process",
    ],
    "Links between hosts listen on the address that leads to the master, or on the one that `SYNGRAD_ADDRESS` names.": [
        f"{WORLD}::test_otherwise_the_route_to_the_master_decides",
        f"{WORLD}::test_an_address_may_be_given",
    ],
    "`Distributed(link_key=FILE)`, or `--link-key FILE`, names a file with a secret of 16 bytes or more, the same on "
    "every host.": [f"{ZEROMQ}::test_a_key_file", f"{ZEROMQ}::test_keys_must_be_the_same"],
    "With it, both ends of a link prove that they have the secret, and who does not have it is sent away.": [
        f"{ZEROMQ}::test_keys_must_be_the_same",
        f"{ZEROMQ}::test_who_knows_only_the_public_key_is_not_let_in",
    ],
    "With it, an entry of the store counts only with a code over the run's name, its own name and its value, which "
    "nobody makes without the secret.": [
        f"{STORE}::test_what_a_stranger_says_of_the_run_is_not_heard",
        f"{STORE}::test_what_the_run_has_said_counts_nowhere_else",
    ],
    "Entries that somebody has removed or written over are written again by the process that waits.": [
        f"{STORE}::test_what_a_stranger_removes_or_writes_over_is_written_again"
    ],
    "The secret is never in the store.": [f"{STORE}::test_whoever_reaches_the_store_reads_what_is_posted"],
    "Processes with different secrets do not meet, and the line that says who has not come says that too.": [
        f"{STORE}::test_other_keys_do_not_meet_and_say_why"
    ],
    "What a key does not do: whoever reaches the store's port reads the hosts, addresses, options and shapes that are "
    "posted there.": [f"{STORE}::test_whoever_reaches_the_store_reads_what_is_posted"],
    "With enough force such a one keeps processes from meeting, and torchrun trusts entries of its own in the same "
    "store.": ADVICE,
    "So let only those reach that port whom you trust.": ADVICE,
    "Without a key a link lets in only who shows the word that this attempt's processes have exchanged at the store.": [
        f"{STRANGERS}::test_strangers_do_not_disturb",
        f"{ZEROMQ}::test_one_of_another_run_is_told_so_and_the_right_one_still_gets_in",
    ],
    "Whoever reads that word there can take a process's place, and what others write there is believed.": [
        f"{STORE}::test_whoever_reaches_the_store_reads_what_is_posted",
        f"{STORE}::test_without_a_key_foreign_words_are_harmless_to_look_at",
    ],
    "So without a key, run only where you trust everybody who reaches these hosts.": ADVICE,
    '`link="process_group"` knows no key.': ["distributed/test_over_groups.py::test_it_cannot_be_encrypted"],
    "Strangers are few at a link: of more than 32 that have not shown who they are, the oldest are cut off.": [
        f"{CROWDS}::test_a_crowd_that_is_there_first_does_not_keep_the_peer_out",
        f"{CROWDS}::test_where_the_kernel_filters_nothing_they_are_cut_off_all_the_same",
    ],
    "Once the right process is linked, Linux is told to drop those who come in numbers until it is calm.": [
        f"{CROWDS}::test_a_crowd_at_a_link_is_sent_away_and_the_link_goes_on"
    ],
    "So a flood of connections takes neither the descriptors nor the memory of a process, and training goes on.": [
        f"{CROWDS}::test_a_crowd_at_a_link_is_sent_away_and_the_link_goes_on",
        f"{STRANGERS}::test_a_stranger_who_floods_is_not_read",
        f"{STRANGERS}::test_many_who_come_and_go_do_not_cut_the_link",
    ],
    "A warning says that strangers have come, once a link.": [f"{STRANGERS}::test_strangers_do_not_disturb"],
    "What others say, at the store or in another process, is shown as one line without control characters and terminal "
    "codes, of at most 2,000 characters.": [
        "test_errors.py::test_foreign_text_is_shown_as_one_harmless_line",
        "test_errors.py::test_foreign_text_has_an_end",
        f"{STORE}::test_without_a_key_foreign_words_are_harmless_to_look_at",
        "pipeline/test_neighbours.py::test_what_another_process_says_of_its_failure_is_harmless_to_look_at",
    ],
}
#: heading → its sentences
SECTIONS = {"Checkpoints and run folders": CHECKPOINTS, "Links and the store": LINKS}


def sentences(section: str) -> list[str]:
    """Those of a section of the page, of its paragraphs and lists."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.split(r"\n\s*\n|\n(?=- )", text)
    flat = (re.sub(r"\s+", " ", block.strip().removeprefix("- ")) for block in blocks)
    return [each for block in flat if block for each in re.split(r"(?<=[.!?]) (?=[A-Z`])", block)]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_sentence_is_held_by_tests(section: str) -> None:
    assert sentences(section) == list(SECTIONS[section])
    assert all(SECTIONS[section].values())


@pytest.mark.parametrize("section", SECTIONS)
def test_these_tests_are_there(section: str) -> None:
    for named in {test for tests in SECTIONS[section].values() for test in tests}:
        file, name = named.split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body), named


def test_nothing_is_unpickled() -> None:
    """Nowhere in the source: neither by name nor by PyTorch's own loading of files."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                names += ["pickle"] * ("weights_only=True" not in ast.unparse(node))
            if any(name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve") for name in names):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
