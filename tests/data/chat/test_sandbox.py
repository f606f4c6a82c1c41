"""Templates are programs: what they may do, and the limits that stop them."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_templates import HOSTILE

from pyft.data.chat import sandbox_limits
from pyft.data.chat.sandbox import TemplateFailure, render_template

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<a & b>"}]


def render(source: str, **variables):
    return render_template(source, {"messages": MESSAGES, **variables})


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


MOST_BYTES = 300 << 20
"""All characters that may be made, one byte each, with some that are not seen yet."""


@pytest.mark.parametrize(("source", "fragment"), HOSTILE)
def test_what_is_stopped_before_it_is_made(source, fragment):
    # What goes round and round, or doubles what it has, takes long to trace.
    is_traced = "loop rounds" not in fragment and "range(60)" not in source
    if is_traced:
        tracemalloc.start()
    try:
        with pytest.raises(TemplateFailure, match=fragment):
            render(source, x="x")
        assert not is_traced or tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_threads_share_a_template_and_no_limit(monkeypatch):
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 50_000)
    source = "{% for i in range(n) %}{% for m in messages %}{{ m.content ~ i }}{% endfor %}{% endfor %}"
    sizes = [300, 10, 6000, 20, 300, 7000]

    def run(n: int) -> str:
        try:
            return render_template(source, {"messages": MESSAGES[:1] * 10, "n": n})[0]
        except TemplateFailure as failure:
            return str(failure)

    with ThreadPoolExecutor(len(sizes)) as pool:
        together = list(pool.map(run, sizes))
    assert together == [run(n) for n in sizes]
    assert [text.startswith("it goes through") for text in together] == [n > 1000 for n in sizes]


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch):
    """Two million steps take seconds; the limit works the same lower. A slow machine has time for them."""
    monkeypatch.setattr(sandbox_limits, "MAX_STEPS", 500_000)
    monkeypatch.setattr(sandbox_limits, "MAX_SECONDS", 600.0)


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
        "{{ [1] | tojson(false, 1) }} {{ [1, 2] | tojson(separators=(';', ':')) }} "
        "{{ m.items() | list }} {{ m.get('no', 3) }} {{ m.keys() | first }} {{ 'a b'.split()[1] }} "
        "{{ m['role'][1:3] }}"
    )
    text = render(source, m={"role": "user"})[0]
    assert text == (
        "a+b a/b user,user a\n  b  a\n b 2.6 3 x=007 x:   y {1} 50% x a,b abX "
        '{\n "a": "é",\n "b": 1\n} "\\u00e9" [\n 1\n] [1;2] '
        "[('role', 'user')] 3 role b se"
    )


@pytest.mark.parametrize("character", ["\ufdd0", "\ufdd1", "\ufdd0\ufdd1\ufdd2"])
def test_marks_are_told_from_contents_that_hold_their_characters(character):
    source = "{% for m in messages %}{{ m }}{% generation %}{{ m }}!{% endgeneration %}{% endfor %}"
    text, spans = render_template(source, {"messages": [f"a{character}", "b", character]})
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
