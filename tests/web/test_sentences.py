"""Every error has a sentence, and each sentence the parameters that its code is raised with."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from notifier.errors import Code, Conflict, NotFound
from notifier.web.sentences import SENTENCES, sentence

ERRORS = Path("notifier/errors.py").read_text()


@pytest.mark.parametrize("code", Code)
def test_a_code_has_a_sentence_with_the_parameters_it_names(code: Code) -> None:
    """They stand in the comment beside the code, where whoever raises it reads them."""
    line = re.search(rf'^    {code.name} = "{code}"(?:  # \((.*)\))?$', ERRORS, re.MULTILINE)
    assert line is not None
    named = set(re.findall(r"\w+", line[1] or ""))
    assert {name for _, name, _, _ in Formatter().parse(SENTENCES[code]) if name} <= named


def test_a_sentence_is_made_where_it_is_shown() -> None:
    assert str(NotFound(Code.NO_MAILING, id=5)) == "no_mailing id=5"
    assert sentence(NotFound(Code.NO_MAILING, id=5)) == "There is no mailing 5."
    assert sentence(Conflict()) == "The present state does not allow this."
    assert sentence(ValueError("as it is")) == "as it is"
