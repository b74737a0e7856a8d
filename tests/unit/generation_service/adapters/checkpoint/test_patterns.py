"""Patterns of adapter configs: matched as by PEFT, in time that no pattern can stretch."""

from __future__ import annotations

import pytest
from peft.utils.other import get_pattern_key, match_target_against_key

from generation_service.adapters.checkpoint.patterns import PatternError, is_full_match, is_suffix_match

NAMES = [
    "q_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "model.language_model.layers.3.self_attn.k_proj",
    "model.visual.blocks.3.attn.qkv",
    "model.visual.merger.mlp.0",
    "lm_head",
]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj|correct_bias).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj|correct_bias)))"
)
PATTERNS = [
    UNSLOTH,
    "q_proj",
    r"layers\.1\.self_attn\.q_proj",
    "layers.1.self_attn.q_proj",
    r"model\.layers\.\d+\.(self_attn|mlp)\.(q|down)_proj",
    r"^model\.layers\.1\d\..*",
    r".*\.(qkv|mlp\.[02])",
    r"(?:model\.)?language_model\.layers\.[0-9]{1,2}\.[a-z_]+\.\w_proj",
    "",
    "|",
    ".*",
    r"(?P<tower>visual|language_model)\..*?(\d)\..*",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_they_match_in_peft(pattern: str) -> None:
    for name in NAMES:
        assert is_full_match(pattern, name) is bool(match_target_against_key(pattern, name)), name
        assert is_suffix_match(pattern, name) is (get_pattern_key([pattern, "marker"], name) == pattern), name


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+\.?)+!",
        r"(?:(?:a*)*)*!",
        r"(\w|ab|bc){40}!",
        "a?" * 40 + "a" * 40,
        r"(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)[!?]",
        "((((((a*)*)*)*)*)*)*",
    ],
)
def test_pattern_with_exponential_backtracking_is_matched_at_once(pattern: str) -> None:
    assert not is_full_match(pattern, "model.language_model.layers.12.self_attn.q_proj" * 20)


@pytest.mark.parametrize("pattern", ["(((((a{1000}){1000}){1000}){1000}){1000})", "(?:[a-z]?){1000}" * 30])
def test_pattern_that_compiles_to_much_memory_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="RE2 does not match it") as caught:
        is_full_match(pattern, "q_proj")
    assert caught.value.valid


@pytest.mark.parametrize("pattern", ["(", "a**", "a{99999999999}", r"\p{L}", "*"])
def test_what_is_no_pattern_for_peft_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError, match="not a regular expression") as caught:
        is_full_match(pattern, "q_proj")
    assert not caught.value.valid


@pytest.mark.parametrize(
    "pattern",
    [r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*", r"(a)\1", "x{,3}", "[[:alpha:]]+", "a++", r"q_proj\Z"],
)
def test_pattern_that_only_re_matches_is_refused_as_valid(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        is_full_match(pattern, "q_proj")
    assert caught.value.valid


def test_overlong_pattern_is_refused() -> None:
    with pytest.raises(PatternError, match="9000 characters"):
        is_full_match("a" * 9000, "q_proj")
