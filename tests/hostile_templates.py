"""Templates that would take all memory or time, read what they must not, or are no templates at all."""

from __future__ import annotations

HOSTILE = [
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
    ("{{ [[1]] | sum(start=[]) }}", "not numbers"),
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
        "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}",
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
        "{% for a in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "loop rounds and calls",
    ),
    (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "loop rounds and calls",
    ),
    ("{% generation %}{% generation %}{% endgeneration %}{% endgeneration %}", "are nested"),
    ("{% for a in [1] %}" * 40 + "{% endfor %}" * 40, "not valid Jinja"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "not valid Jinja"),
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
    ("{% if %}", "not valid Jinja in line 1"),
    ("{% generation %}", "not valid Jinja"),
    ("{{ x | center(99) }}", "center"),
    ("{{ '%(a(x)b)999999999d' % {'a(x)b': 1} }}", "width"),
    ("{{ '%l%%999999999d' % (1, 2) }}", "width"),
    ("{{ ('%(' * 8 * 10**6) % {} }}", "characters"),
    ("{{ '{:>999999999}'.format_map({'': 1}) }}", "width"),
    ("{{ range(9999) | list | tojson(separators=('x' * 10**6, ':')) }}", "characters"),
    (
        "{% set n = namespace(x=range(9999) | list) %}"
        "{% for i in range(50) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x | tojson(indent=99) }}",
        "characters",
    ),
    ("{{ ('\\n' * 10**6) | indent(99) }}", "characters"),
    ("{{ ('峰' * 10**7) | list }}", "parts"),
    ("{{ ('峰' * 10**7) | join }}", "parts"),
    ("{{ ('峰' * 10**7) | title }}", "parts"),
    ("{{ ('a ' * 10**6) | wordcount }}", "parts"),
    ("{{ ('峰x' * 7 * 10**6).split('x') }}", "parts"),
    ("{{ ('峰 ' * 7 * 10**6).split() }}", "parts"),
    ("{{ ('峰\\n' * 7 * 10**6).splitlines() }}", "parts"),
    ("{{ [0] * 10**9 }}", "parts"),
    ("{{ dict(*('峰' * 10**7)) }}", "parts"),
    ("{{ x | replace(*('峰' * 10**7)) }}", "parts"),
    (
        "{% set l = range(99999) | list %}{% set l = l + l + l + l + l %}"
        "{{ l | select | select | select | select | select | select | list }}",
        "loop rounds and calls",
    ),
    ("{{ range(99999) | map('string') | map('replace', '9', 'x' * 10**6) | list }}", "characters"),
    ("{{ [10**63] * 10**6 }}", "parts"),
    ("{{ raise_exception('x' * 10**7) }}", "^x{1000}$"),
]
"""Each is rendered with two `messages`, and `x`."""
