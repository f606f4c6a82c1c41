"""Templates are programs: what they may do, and the limits that stop them."""

from __future__ import annotations

import time

import pytest

from pyft.data.chat import sandbox_limits
from pyft.data.chat.sandbox import TemplateFailure, compile_template

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
        ("{{ range(99999) | join('x' * 10**6) }}", "characters"),
        ("{{ ('x' * 10**6).join(range(99999) | map('string')) }}", "characters"),
        ("{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}", "characters"),
        ("{{ '%999999999d' % 3 }}", "width"),
        ("{{ '%*d' % (999999999, 3) }}", "width"),
        ("{{ '%(a)999999999d' | format(a=3) }}", "width"),
        ("{{ '{:>999999999}'.format(1) }}", "width"),
        ("{{ '{:>{}}'.format(1, 999999999) }}", "width"),
        ("{{ ('%(a)s' * 10**6) % {'a': 'x' * 10**6} }}", "characters"),
        ("{{ 'a' | indent(10**9) }}", "indents"),
        ("{{ [1] | tojson(indent=10**9) }}", "indents"),
        ("{{ 3.5 | round(10**9, 'ceil') }}", "rounds to"),
        ("{{ [[1]] | sum(start=[]) }}", "no numbers"),
        ("{{ 'a'.encode() }}", "unsafe"),
        ("{{ (1).to_bytes(10**9) }}", "unsafe"),
        ("{{ 'a'.translate({97: 'x' * 10**6}) }}", "unsafe"),
        ("{{ lipsum(n=10**6) }}", "lipsum"),
        ("{{ strftime_now('%Y' * 10**6) }}", "date format"),
        (
            "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "large numbers",
        ),
        (
            "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
            "parts",
        ),
        (
            "{% set n = namespace(x=1) %}"
            "{% for i in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
            "parts",
        ),
        (
            "{% set n = namespace(x='a' * 99) %}{% for i in range(60) %}"
            "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
            "characters",
        ),
        (
            "{% macro f() %}{% for i in range(9999) %}{{ 'x' * 10**6 }}{% endfor %}{% endmacro %}{{ f() }}",
            "characters on the way",
        ),
        (
            "{% generation %}{% for i in range(9999) %}{{ 'x' * 10**6 }}{% endfor %}{% endgeneration %}",
            "characters on the way",
        ),
        (
            "{% set s = 'x' * 10**7 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
            "characters on the way",
        ),
        (
            "{% set s = 'x' * 10**7 %}{% set t = s + s + s + s + s + s + s + s + s + s + s + s %}",
            "characters",
        ),
        ("{% set s = 'x' * 10**7 %}{% set t = s ~ s ~ s ~ s ~ s ~ s ~ s ~ s ~ s ~ s %}", "characters"),
        (
            "{% for a in [1, 2] recursive %}"
            "{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
            "loop rounds and calls",
        ),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "loop rounds and calls",
        ),
        ("{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}", "lie in each other"),
        ("{% for a in [1] %}" * 40 + "{% endfor %}" * 40, "no valid Jinja"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "no valid Jinja"),
        ("x" * 200_001, "longer than 200000 characters"),
        ("{% include 'x' %}", "no loader"),
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


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    """Two million steps take seconds; the limit works the same lower."""
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 500_000)


def test_a_namespace_prints_nothing_of_what_it_holds():
    doubled = "{% set m = namespace(a=n.v, b=n.v) %}{% set m.a = n.v %}{% set n.v = m %}"
    source = "{% set n = namespace(v=0) %}{% for i in range(60) %}" + doubled + "{% endfor %}{{ n.v }}"
    assert render(source)[0] == "<namespace>"


def test_a_value_may_be_made_in_many_small_steps():
    source = (
        "{% set n = namespace(x='') %}{% for i in range(3000) %}{% set n.x = n.x ~ 'ab' %}{% endfor %}"
        "{{ n.x | length }} {{ (['x'] * 3) | join(',') }} "
        "{{ 'a' + 'b' + 'c' + 'd' + 'e' + 'f' + 'g' + 'h' + 'i' }}"
        "{% set s = 'a' + 'b' + 'c' + 'd' + 'e' + 'f' + 'g' + 'h' + 'i' + 'j' + 'k' %}{{ s }}"
        "{{ 'a' ~ 1 ~ 2 ~ 3 ~ 4 ~ 5 ~ 6 ~ 7 ~ 8 ~ 9 ~ 10 ~ 11 }}"
    )
    assert render(source)[0] == "6000 x,x,x abcdefghiabcdefghijka1234567891011"


def test_filters_and_methods_do_what_they_do_elsewhere():
    source = (
        "{{ 'a-b' | replace('-', '+') }} {{ ['a', 'b'] | join('/') }} "
        "{{ [m, m] | join(',', attribute='role') }} "
        "{{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(width=1, first=true) }} {{ 2.567 | round(1) }} "
        "{{ [1, 2] | sum }} {{ '%s=%03d' | format('x', 7) }} {{ '{0}:{1:>4}'.format('x', 'y') }} "
        "{{ '{{{}}}'.format(1) }} {{ '50%% %s' % 'x' }} {{ ','.join(['a', 'b']) }} "
        "{{ 'aXbX'.replace('X', '', 1) }} "
        "{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true, indent=1) }} {{ 'é' | tojson(ensure_ascii=true) }} "
        "{{ m.items() | list }} {{ m.get('no', 3) }} {{ m.keys() | first }} {{ 'a b'.split()[1] }} "
        "{{ m['role'][1:3] }}"
    )
    text = render(source, m={"role": "user"})[0]
    assert text == (
        "a+b a/b user,user a\n  b  a\n b 2.6 3 x=007 x:   y {1} 50% x a,b abX "
        '{\n "a": "é",\n "b": 1\n} "\\u00e9" '
        "[('role', 'user')] 3 role b se"
    )


@pytest.mark.parametrize("character", ["\ufdd0", "\ufdd1", "\ufdd0\ufdd1\ufdd2"])
def test_marks_are_told_from_contents_that_hold_their_characters(character):
    source = "{% for m in messages %}{{ m }}{% generation %}{{ m }}!{% endgeneration %}{% endfor %}"
    text, spans = compile_template(source).render({"messages": [f"a{character}", "b", character]})
    assert [text[start:end] for start, end in spans] == [f"a{character}!", "b!", f"{character}!"]
    assert text == "".join(f"{m}{m}!" for m in (f"a{character}", "b", character))


@pytest.mark.parametrize(
    ("source", "marked"),
    [
        ("{% set x %}ab{% generation %}cd{% endgeneration %}{% endset %}12{{ x }}", ["cd"]),
        (
            "{% macro f() %}-{% generation %}cd{% endgeneration %}{% endmacro %}12{{ f() }}3{{ f() }}",
            ["cd", "cd"],
        ),
        ("12{% filter upper %}x{% generation %}cd{% endgeneration %}{% endfilter %}", ["CD"]),
        ("{% set x %}{% generation %}cd{% endgeneration %}{% endset %}12", []),
        ("1{% generation %}{% endgeneration %}2", [""]),
    ],
)
def test_marks_go_where_their_text_goes(source, marked):
    text, spans = render(source)
    assert [text[start:end] for start, end in spans] == marked
    assert not any("\ufdd0" <= character <= "\ufdef" for character in text)


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 0.0)
    with pytest.raises(TemplateFailure, match="takes more than 0 seconds"):
        render("{% for a in range(99999) %}{% endfor %}{{ 1 }}")


def test_one_rendering_uses_up_nothing_of_the_next():
    source = "{% for a in range(99999) %}{% endfor %}ok"
    for _ in range(25):
        assert render(source)[0] == "ok"
