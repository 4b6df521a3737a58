"""Flags: 100% of what a field can be, and everything that a command line gets wrong."""

from dataclasses import dataclass, fields

import harness
from harness import Study, UserError, parse_arguments, pick_device, require, run_study

import pytest


@dataclass(frozen=True)
class Config:
    """One field of every kind."""

    preset: str = "default"  # default, large or wide
    whole: int = 3  # how many: 100% of them, 5%s or %(default)s
    number: float = 0.5  # a share # of something
    text: str = "plain"  # a word
    off: bool = False  # what is off
    on: bool = True  # what is on
    wholes: tuple[int, ...] = (1, 2)  # some whole numbers
    numbers: tuple[float, ...] = ()  # some numbers
    texts: tuple[str, ...] = ("a",)  # some words
    pair: tuple[int, int] = (1, 2)  # from and to
    triple: tuple[str, str, str] = ("x", "y", "z")  # three words
    maybe: float | None = None  # a number, or none
    maybe_text: str | None = "x"  # a word, or none
    maybe_flag: bool | None = None  # true, false or none
    maybe_pair: tuple[float, float] | None = None  # two numbers, or none
    maybe_wholes: tuple[int, ...] | None = (3,)  # some whole numbers, or none
    device: str = "cpu"  # where

    def __post_init__(self):
        require(self, "whole", self.whole >= 0, "at least 0")
        require(self, "wholes", len(set(self.wholes)) == len(self.wholes), "different")


PRESETS = {"default": {}, "large": {"whole": 100, "pair": (5, 6), "off": True}, "wide": {"numbers": (0.5, 1.5)}}


def plan(config):
    raise AssertionError("bad input goes no further")


def study(kind: type = Config, presets: dict | None = PRESETS) -> Study:
    return Study(kind, plan, (), (), presets)


def parsed(*words: str) -> Config:
    return parse_arguments(study(), list(words))[0]


# ---- What is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, value",
    [
        ("--whole 7", 7),
        ("--whole=7", 7),
        ("--whole 0", 0),
        ("--whole 8 --whole 7", 7),
        ("--number 2", 2.0),
        ("--number -1e-3", -0.001),
        ("--number=-inf", float("-inf")),
        ("--text none", "none"),  # none is a word where a value cannot be missing
        ("--text=--c", "--c"),
        ("--off", True),
        ("--off true", True),
        ("--off 1", True),
        ("--on 0", False),
        ("--on=False", False),
        ("--wholes 3", (3,)),
        ("--wholes -3 -4", (-3, -4)),
        ("--numbers 1 .5 -2", (1.0, 0.5, -2.0)),
        ("--texts b a", ("b", "a")),
        ("--pair 3 4", (3, 4)),
        ("--triple a b c", ("a", "b", "c")),
        ("--maybe 2", 2.0),
        ("--maybe none", None),
        ("--maybe_text None", None),
        ("--maybe_flag", True),
        ("--maybe_flag 0", False),
        ("--maybe_flag none", None),
        ("--maybe_pair 1 2", (1.0, 2.0)),
        ("--maybe_pair none", None),
        ("--maybe_wholes none", None),
        ("--maybe_wholes 1 2", (1, 2)),
    ],
)
def test_a_flag_sets_its_field_and_no_other(words, value):
    for argv in (words.split(" "), ["--device", "mps", *words.split(" ")], [*words.split(" "), "--device", "mps"]):
        config = parsed(*argv)
        name = words[2:].split()[0].split("=")[0]
        found = getattr(config, name)
        assert found == value and type(found) is type(value)
        kinds = [type(part) for part in value] if isinstance(value, tuple) else []
        assert kinds == [type(part) for part in found] if kinds else True
        changed = {field.name for field in fields(Config) if getattr(config, field.name) != field.default}
        assert changed <= {name, "device"}


def test_without_flags_the_configuration_is_the_default_one():
    config, options = parse_arguments(study(), [])
    assert config == Config()
    assert (str(options.out_dir), options.overwrite, options.save_models) == ("run_0", False, False)
    options = parse_arguments(study(), ["--out_dir=x/y", "--overwrite", "--save_models"])[1]
    assert (str(options.out_dir), options.overwrite, options.save_models) == ("x/y", True, True)


def test_a_preset_is_below_explicit_flags_wherever_they_stand():
    large = Config(preset="large", whole=100, pair=(5, 6), off=True)
    assert parsed("--preset", "large") == large
    assert parsed("--preset=wide") == Config(preset="wide", numbers=(0.5, 1.5))
    expected = Config(preset="large", whole=3, pair=(1, 2), off=False)  # also where a flag says what is the default
    assert parsed("--preset", "large", "--whole", "3", "--pair", "1", "2", "--off", "false") == expected
    assert parsed("--off=0", "--pair", "1", "2", "--whole=3", "--preset=large") == expected


@dataclass(frozen=True)
class Large:
    preset: str = "large"  # default or large
    whole: int = 3  # how many


def test_the_default_preset_is_applied_too():
    presets = {"default": {}, "large": {"whole": 100}}
    assert parse_arguments(study(Large, presets), [])[0] == Large("large", 100)
    assert parse_arguments(study(Large, presets), ["--preset=default"])[0] == Large("default", 3)
    assert parse_arguments(study(Large, None), ["--preset=anything"])[0] == Large("anything", 3)


def test_help_shows_every_field_with_its_comment_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        run_study(study(), ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and " ".join(__doc__.split()) in told
    assert "--whole X how many: 100% of them, 5%s or %(default)s (default 3)" in told
    assert "some whole numbers (default 1 2)" in told and "two numbers, or none (default None)" in told
    for field in fields(Config):
        assert f"--{field.name} " in told
    for option in ("--out_dir", "--overwrite", "--save_models"):
        assert option in told


# ---- What is refused -------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "unknown flag": ("--wide 3", ["--wide"]),
    "abbreviated flag": ("--trip a b c", ["--trip", "unrecognized"]),
    "single dash": ("-w 3", ["-w"]),
    "stray word": ("stray", ["stray"]),
    "no value": ("--whole", ["--whole", "expected one argument"]),
    "not whole": ("--whole 1.5", ["--whole", "1.5 must be a whole number"]),
    "no number": ("--number x", ["--number", "x must be a number"]),
    "neither true nor false": ("--on yes", ["--on", "yes must be true or false"]),
    "one of a list": ("--wholes 1 x", ["--wholes", "x must be a whole number"]),
    "two for one": ("--whole 1 2", ["2"]),
    "none where a value is needed": ("--whole none", ["--whole", "none must be a whole number"]),
    "neither number nor none": ("--maybe x", ["--maybe", "x must be a number or none"]),
    "one of a pair": ("--pair 1", ["--pair 1", "2 values"]),
    "nothing of a pair": ("--pair", ["--pair", "2 values"]),
    "three of a pair": ("--maybe_pair 1 2 3", ["--maybe_pair", "2 values"]),
    "none in a pair": ("--maybe_pair none 2", ["--maybe_pair", "2 values"]),
    "none in a list": ("--maybe_wholes 1 none", ["--maybe_wholes", "a list of values"]),
    "no value of a list": ("--wholes", ["--wholes: must be one or more values"]),
    "no value of a list that may be none": ("--maybe_wholes", ["--maybe_wholes: must be one or more values"]),
    "unknown preset": ("--preset huge", ["--preset huge", "default or large or wide"]),
    "what the configuration refuses": ("--whole -1", ["--whole -1: must be at least 0"]),
    "a list that it refuses": ("--wholes 2 2", ["--wholes 2 2: must be different"]),
    "what it refuses below a preset": ("--preset large --whole -1", ["--whole -1: must be at least 0"]),
    "a device that is none": ("--device tpu", ["--device tpu", "auto or cpu"]),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, what):
    words, wanted = BAD_INPUT[what]
    monkeypatch.chdir(tmp_path)
    assert run_study(study(), words.split(" ")) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("test_flags.py: ")
    assert all(part in told.err for part in wanted), told.err
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Listed:
    fine: int = 1
    values: list[int] = None


@dataclass(frozen=True)
class Mixed:
    values: tuple[int, str] = (1, "a")


@dataclass(frozen=True)
class Either:
    values: int | str = 1


@dataclass(frozen=True)
class EitherOrNone:
    values: int | str | None = 1


@dataclass(frozen=True)
class Bare:
    values: tuple = ()


@dataclass(frozen=True)
class Required:
    values: int


@pytest.mark.parametrize("kind", [Listed, Mixed, Either, EitherOrNone, Bare, Required])
def test_a_field_that_no_flag_can_be_is_named(kind):
    with pytest.raises(TypeError, match=r"Config\.values must be"):
        parse_arguments(study(kind, None), [])


@dataclass(frozen=True)
class NoComma:
    steps: tuple[int, ...] = (1000)  # fmt: skip


@dataclass(frozen=True)
class NoCommaPair:
    steps: tuple[float, float] | None = 0.5


@dataclass(frozen=True)
class WordForNumber:
    steps: int = "3"


@dataclass(frozen=True)
class NumberForWord:
    steps: str = 3


@dataclass(frozen=True)
class FractionForWhole:
    steps: tuple[int, ...] = (1, 2.5)


@dataclass(frozen=True)
class NoneForNumber:
    steps: int = None


@dataclass(frozen=True)
class NumberForFlag:
    steps: bool = 1


@dataclass(frozen=True)
class FlagForNumber:
    steps: int = True


@dataclass(frozen=True)
class TooManyOfAPair:
    steps: tuple[int, int] = (1, 2, 3)


WRONG = {NoComma: "(1000,)", NoCommaPair: "(0.5,)", WordForNumber: "'3'", NumberForWord: "3"}
WRONG |= {FractionForWhole: "(1, 2.5)", NoneForNumber: "None", NumberForFlag: "1", FlagForNumber: "True"}
WRONG |= {TooManyOfAPair: "(1, 2, 3)"}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_default_that_is_not_of_its_kind_is_named_with_its_value(kind):
    with pytest.raises(TypeError) as error:
        parse_arguments(study(kind, None), [])
    assert f"Config.steps = {kind.steps!r} must be" in str(error.value) and WRONG[kind] in str(error.value)
    assert ("comma" in str(error.value)) == (kind in (NoComma, NoCommaPair))


@dataclass(frozen=True)
class Fine:
    numbers: tuple[float, ...] = (1, 2.5)
    number: float = 1


def test_a_whole_number_may_stand_for_a_number():
    assert parse_arguments(study(Fine, None), [])[0] == Fine()


def test_a_preset_that_is_not_of_its_kind_is_named_with_its_value():
    wrong = [
        ({"pair": (5)}, "comma"),
        ({"whole": "x"}, r"whole = 'x' \(--preset default\)"),
        ({"huge": 1}, "Config.huge"),
    ]
    for preset, told in (*wrong, ({"pair": [5]}, r"a tuple is \(5,\)")):
        with pytest.raises(TypeError, match=told):
            parse_arguments(study(presets={"default": preset}), [])


def test_a_field_that_the_harness_needs_is_named():
    with pytest.raises(TypeError, match="a field preset"):
        parse_arguments(study(Fine, {"small": {}}), [])
    with pytest.raises(TypeError, match="a field device"):
        pick_device(Fine())


EMPTY = [f"--{field.name}" for field in fields(Config)] + ["--out_dir"]


@pytest.mark.parametrize("value", ["", " ", "\t"])
@pytest.mark.parametrize("flag", EMPTY)
def test_an_unset_shell_variable_is_one_line_in_every_flag(tmp_path, monkeypatch, capsys, flag, value):
    monkeypatch.chdir(tmp_path)
    several = [[flag, value, "3"], [flag, "3", value]] if "s" in flag[-1:] else []
    for words in ([flag, value], [f"{flag}={value}"], *several):
        assert run_study(study(), words) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and flag in told.err, told.err
    assert list(tmp_path.iterdir()) == []


def test_a_path_may_begin_with_a_dash():
    assert str(parse_arguments(study(), ["--out_dir", "-x"])[1].out_dir) == "-x"


@dataclass(frozen=True)
class Flags:
    values: tuple[bool, ...] = (True,)


def test_a_list_of_booleans_is_read():
    assert parse_arguments(study(Flags, None), ["--values", "0", "true"])[0].values == (False, True)


def test_require_names_flag_value_and_what_is_allowed():
    require(Config(), "whole", True, "anything")
    with pytest.raises(UserError, match=r"^--pair 1 2: must be increasing by 2$"):
        require(Config(), "pair", False, "increasing by 2")
    assert issubclass(harness.UserError, ValueError)  # Config(...) in a notebook
