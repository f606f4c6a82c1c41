"""Templates are programs: what they may do, and the limits that stop them."""

from __future__ import annotations

import time

import pytest

from pyft.data import sandbox_limits
from pyft.data.sandbox import TemplateFailure, compile_template

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<a & b>"}]


def render(source: str, **variables):
    return compile_template(source).render({"messages": MESSAGES, **variables})


def test_generation_marks_are_where_they_are():
    source = (
        "{% for m in messages %}{{ m.role }}:"
        "{% generation %}{{ m.content }}!{% endgeneration %};{% endfor %}{{ tail }}"
    )
    text, spans = render(source, tail="end")
    assert text == "user:q!;assistant:<a & b>!;end"
    assert [text[start:end] for start, end in spans] == ["q!", "<a & b>!"]


def test_what_templates_of_transformers_use():
    source = (
        "{%- for m in messages %}\n"
        "    {%- if loop.last %}{% break %}{% endif %}\n"
        "{{ loop.length }}{{ m | tojson }}{{ m.content is string }}{{ messages[-1]['content'] | trim }}"
        "{{ 'abc'.replace('b', 'x') }}{{ (['a'] * 2) | join('-') }}{{ 'n: %d' % 3 }}{{ 'a' ~ 1 }}"
        "{%- endfor %}"
    )
    assert render(source)[0] == '2{"role": "user", "content": "q"}True<a & b>axca-an: 3a1'
    assert render("{{ strftime_now('%Y') }}")[0] == time.strftime("%Y")


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "loop rounds"),
        (
            "{% for a in range(9999) %}{% for b in range(99) %}{{ 'x' * 99 }}{% endfor %}{% endfor %}",
            "characters",
        ),
        ("{{ 'x' * 10**9 }}", "characters"),
        ("{{ ('x' * 10**6).replace('x', 'y' * 10**6) }}", "characters"),
        (
            "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "characters",
        ),
        (
            "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "characters",
        ),
        ("{{ 10**10**10 }}", "power"),
        ("{{ 'a'.ljust(10**9) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "needs too much"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{{ 1 / 0 }}", "division"),
        ("{% if %}", "no valid Jinja in line 1"),
        ("{% generation %}", "no valid Jinja"),
        ("{{ x | center(99) }}", "center"),
    ],
)
def test_what_is_stopped(source, fragment):
    with pytest.raises(TemplateFailure, match=fragment):
        render(source, x="x")


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 0.0)
    with pytest.raises(TemplateFailure, match="takes more than 0 seconds"):
        render("{% for a in range(99999) %}{% endfor %}{{ 1 }}")


def test_one_rendering_uses_up_nothing_of_the_next():
    source = "{% for a in range(99999) %}{% endfor %}ok"
    for _ in range(25):
        assert render(source)[0] == "ok"
