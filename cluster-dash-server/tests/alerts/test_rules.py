from pathlib import Path

import pytest
import tomllib

from cluster_dash_server.alerts import rules
from cluster_dash_server.alerts.facts import FACTS, xid_class
from cluster_dash_server.alerts.rules import RulesError

ETC = Path(__file__).parents[3] / "etc"


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    return file


def test_the_shipped_rules_are_on_and_say_what_to_do() -> None:
    shipped = rules.load()
    assert len(shipped) >= 25
    for rule in shipped:
        assert rule.title, rule.name
        assert rule.cause, rule.name
        assert rule.next, rule.name


def test_every_fact_but_plain_figures_has_a_shipped_rule() -> None:
    plain = {"cpu", "load", "free", "gpus", "mem", "free_mem", "util", "temp", "power", "idle", "state", "event"}
    assert {rule.condition.fact for rule in rules.load()} == set(FACTS) - plain


def test_a_site_changes_a_shipped_rule_key_by_key(tmp_path: Path) -> None:
    file = own(tmp_path, '[disk-full]\nwhen = "disk > 98%"\nclear = 97\nfilter = "-part:debug"\nto = ["ops"]\n')
    rule = next(rule for rule in rules.load(file) if rule.name == "disk-full")
    assert (rule.condition.threshold, rule.condition.clear, rule.for_seconds, rule.to) == (98.0, 97.0, 300.0, ("ops",))


def test_a_site_switches_a_rule_off(tmp_path: Path) -> None:
    file = own(tmp_path, "[disk-full]\nenabled = false\n")
    assert "disk-full" not in {rule.name for rule in rules.load(file)}
    assert "disk-full" in {rule.name for rule in rules.read(file)}


def test_a_site_adds_a_rule_of_its_own(tmp_path: Path) -> None:
    file = own(
        tmp_path, '[too-thirsty]\nwhen = "power > 690 W"\nfor = "5m"\nfilter = "model:h100"\nseverity = "info"\n'
    )
    rule = rules.load(file)[-1]
    assert (rule.name, rule.condition.threshold, rule.for_seconds, rule.severity) == ("too-thirsty", 690, 300, "info")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[disk-ful]\nfor = '1m'", "did you mean [disk-full]?"),
        ("[my-rule]\nfor = '1m'", "needs `when`"),
        ("[My_Rule]\nwhen = 'silent'", "expected a name of a-z"),
        ("[disk-full]\nseverety = 'info'", "unknown key severety, did you mean severity?"),
        ("[disk-full]\nseverity = 'grave'", "expected info or warning or critical"),
        ("[disk-full]\nfor = 5", "expected a time such as '5m'"),
        ("[disk-full]\nfor = 'soon'", "expected a time such as '5m'"),
        ("[disk-full]\nto = 'ops'", "expected a list of names of receivers"),
        ("[disk-full]\nsame_cause = 'silent'", "expected a list of names of rules"),
        ("[disk-full]\nsame_cause = ['host-silnt']", "no rule is called host-silnt, did you mean host-silent?"),
        ("[disk-full]\nenabled = 'no'", "expected true or false"),
        ("[disk-full]\nfilter = 'colour:red'", "colour: no such key"),
        ("[disk-full]\nwhen = 'disc > 95'", "disc: no such fact, did you mean disk?"),
        ("[disk-full]\nwhen = 'disk'", "disk is a number"),
        ("[disk-full]\nwhen = 'disk > much'", "disk is a number"),
        ("[disk-full]\nwhen = '95 < disk'", "expected NAME or NAME OP VALUE"),
        ("[disk-full]\nclear = 99", "would end the alert no later"),
        ("[throttled]\nwhen = 'throttled > 3'", "leave out > 3"),
        ("[hot]\nwhen = 'throttled'\nclear = 3", "throttled is no number"),
        ("[mine]\nwhen = 'xid = grave'", "write xid = application or hardware or fatal"),
        ("[mine]\nwhen = 'state > 3'", "write state = "),
        ("[posts-refused]\nfilter = 'host:gpu01'", "is of no host"),
        ("disk-full = 3", "expected a section [disk-full]"),
        ("[[alert]]\nwhen = 'temp > 85'", "[[alert]]: each rule is a section under its own name: [NAME], no list"),
        ("[[alert]]\nname = 'too-hot'", "under its own name: [too-hot], no list"),
        ("[[rules]]\nname = 'mine'\n[[rules]]\nname = 'disk-full'", "under its own name: [disk-full], no list"),
        ("[[disk-full]]\nenabled = false", "[[disk-full]]: each rule is a section under its own name: [disk-full]"),
        ("[alert.too-hot]\nwhen = 'temp > 85'", "[alert.too-hot]: write [too-hot], the name of the rule alone"),
        ("[disk-full", "not TOML"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_in_words(tmp_path: Path, text: str, why: str) -> None:
    file = own(tmp_path, text)
    with pytest.raises(RulesError) as error:
        rules.load(file)
    assert why in str(error.value)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"alerts\.rules_file: .*rules\.toml: cannot be read: No such file"):
        rules.load(tmp_path / "rules.toml")


def test_a_rule_that_names_a_receiver_that_there_is_not_is_refused(tmp_path: Path) -> None:
    file = own(tmp_path, '[disk-full]\nto = ["opps"]\n')
    with pytest.raises(RulesError, match="did you mean ops"):
        rules.load(file, receivers=("ops", "chat"))


def test_the_example_changes_nothing_until_it_is_edited() -> None:
    assert rules.load(ETC / "rules.toml") == rules.load()


def test_what_the_example_says_of_the_shipped_rules_is_true() -> None:
    uncommented = "\n".join(
        line.removeprefix("# ")
        for line in (ETC / "rules.toml").read_text().splitlines()
        if line.startswith(("# [", "# when"))
    )
    shipped = {rule.name: rule.when for rule in rules.load()}
    shown = {name: section["when"] for name, section in tomllib.loads(uncommented).items()}
    assert {name: when for name, when in shown.items() if name in shipped} == shipped


@pytest.mark.parametrize(
    ("code", "expected"),
    [(31, "application"), ("79", "fatal"), (48, "hardware"), (999, "hardware"), (None, "hardware")],
)
def test_an_xid_has_a_class(code: object, expected: str) -> None:
    assert xid_class(code) == expected
