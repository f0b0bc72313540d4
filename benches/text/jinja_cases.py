"""Small templates that ask what Jinja does, by subject; `text_goldens.py` asks HuggingFace's renderer for the answers."""

# What they are rendered with, beside `messages` and `tools`.
CONTEXT = {
    "word": "héllo <b>&'\"", "empty": "", "space": " \t a  b \n", "text": "one two  three\nfour\r\n\nfive",
    "n": 7, "minus": -3, "zero": 0, "pi": 3.25, "whole": 2.0, "big": 1e20, "small": 1e-7, "huge": 12345678901234567890,
    "yes": True, "no": False, "nil": None, "list": [3, 1, 2], "words": ["b", "A", "c", "a"], "none_list": [],
    "map": {"b": 1, "a": {"x": [1, "é"], "items": 3}, "C": None}, "empty_map": {},
    "rows": [{"k": "x", "v": 2, "t": {"d": 1}}, {"k": "y", "v": 1, "t": {"d": 5}}, {"k": "x", "v": 3}],
    "quotes": ["it's", 'say "hi"', "both ' and \"", "back\\slash\n\t\x7f\x00", "é🙂\u200d\u00a0"],
    "schema": {"type": "object", "properties": {"items": {"type": "array"}, "keys": {"type": "string"},
                                                "get": {"type": "number"}, "values": {"type": "null"}}},
}

CASES = {
    "printing": """
{{ yes }} {{ no }} {{ nil }} {{ n }} {{ minus }} {{ pi }} {{ whole }}
{{ big }} {{ small }} {{ huge }} {{ 1e16 }} {{ 1.5e300 }} {{ 0.1 + 0.2 }} {{ 1e15 }} {{ 100000.0 }} {{ 1/3 }}
{{ list }} {{ words }} {{ none_list }} {{ (1, 'a') }} {{ (1,) }} {{ () }}
{{ map }} {{ empty_map }} {{ {'a': none, 'b': true, 1: 2.0} }}
{{ quotes }}
{{ [whole, big, small, 1.5, -0.0] }} {{ -0.0 }}
{{ missing }}|{{ missing is defined }}|{{ [missing] }}
{{ ['a', ['b', {'c': 'd'}]] }}
{{ word }} {{ [word] }}
{{ messages[0] }}
{{ 'x' ~ 1 ~ none ~ true ~ 2.0 ~ [1] ~ missing }}
{{ range(3) }}
{{ '' ~ 1e20 }}
{{ range(3) | list }}
{{ map.keys() | list }} {{ map.values() | list }} {{ map.items() | list }}
{{ empty_map.items() | list }}
{{ map.keys() }}
{{ map.items() }}
{{ 'a\\nb' }} {{ "a\\tb" }} {{ 'a\\'b' }} {{ '\\u00e9' }} {{ '\\x41' }} {{ 'a\\\\b' }} {{ '\\d' }}
{{ 1_000 }} {{ 0x1f }} {{ 0b11 }} {{ 0o17 }}
{{ 9223372036854775807 }} {{ 9223372036854775808 }} {{ -9223372036854775808 }}
""",
    "undefined": """
{{ missing.attr }}
{{ missing['attr'] }}
{{ messages[0].attr }}|{{ messages[0]['attr'] }}|{{ messages[9] }}|{{ map.nothing }}
{{ messages[0].attr.more }}
{{ missing + 'x' }}
{{ 'x' + missing }}
{{ missing ~ 'x' }}
{{ missing == missing }} {{ missing == none }} {{ missing == '' }} {{ not missing }}
{{ missing | length }}
{{ missing | trim }}|{{ missing | upper }}|{{ missing | default('d') }}|{{ missing | list }}|{{ missing | join }}
{{ missing | tojson }}
{{ missing() }}
{{ missing | int }}
{{ missing < 1 }}
{% for x in missing %}{{ x }}{% else %}none{% endfor %}
{% for x in none %}{{ x }}{% else %}none{% endfor %}
{% for x in 5 %}{{ x }}{% endfor %}
{{ 'a' in missing }}
{{ 'a' in none }}
{{ none.attr }}|
{{ none.attr.more }}
{{ none['attr'] }}|
{{ n.attr }}|{{ word.attr }}|{{ list.attr }}|
{{ n['attr'] }}|
{{ none + 'x' }}
{{ none ~ 'x' }}
{{ none | length }}
{{ missing if missing else 'no' }}
{{ 'yes' if no }}|{{ ('yes' if no) is defined }}
{{ ('yes' if no) ~ 'z' }}
{{ missing is none }} {{ missing is string }} {{ missing is mapping }} {{ missing is iterable }} {{ missing is sequence }}
{% set x = missing %}{{ x is defined }}
{{ missing or 'other' }} {{ missing and 'other' }}|
{{ missing[0] }}
{{ missing.strip() }}
{{ messages[0].content.nothing() }}
{{ messages[0].nothing.strip() }}
{{ missing * 3 }}
{{ -missing }}
{{ none < 1 }}
{{ 'a' < 1 }}
{{ [1] + none }}
{{ none is defined }}
{{ [1, 2][5] is defined }} {{ 'abc'[7] is defined }} {{ 'abc'[7] }}|
""",
    "operators": """
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 4 / 2 }} {{ 7 / 2 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1 + 1.0 }} {{ 3 * 1.5 }} {{ 3 - 1 }} {{ true + true }} {{ 2 ** 0.5 }} {{ -2 ** 2 }} {{ 2 ** 3 ** 2 }}
{{ 'ab' * 3 }} {{ 3 * 'ab' }} {{ [1] * 3 }} {{ 'ab' * 0 }} {{ 'ab' * -1 }}|
{{ [1] + [2] }} {{ 'a' + 'b' }} {{ (1,) + (2,) }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ '1' == 1 }} {{ [1] == [1] }} {{ {'a': 1} == {'a': 1} }} {{ none == false }} {{ '' == none }} {{ (1, 2) == [1, 2] }}
{{ 1 < 2 < 3 }} {{ 3 > 2 >= 2 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 'B' < 'a' }} {{ [1, 2] < [1, 3] }}
{{ 'a' in 'cat' }} {{ 'x' not in 'cat' }} {{ 1 in [1, 2] }} {{ 'a' in map }} {{ 'z' in map }} {{ '' in 'a' }} {{ 3 in (1, 2) }} {{ none in [none] }}
{{ 1 in 'a1' }}
{{ 1 in 5 }}
{{ not 1 }} {{ not '' }} {{ not [] }} {{ not {} }} {{ not 0.0 }} {{ not none }} {{ 'a' and 'b' }} {{ '' or 'b' }} {{ 0 or none }} {{ 1 and 0 }}
{{ 1 if true else 2 }} {{ 1 if false else 2 if true else 3 }}
{{ 2 + 3 * 4 ~ 'x' }} {{ 1 ~ 2 + 3 }} {{ (1 ~ 2) | int + 3 }}
{{ 'a' ~ 'b' | upper }} {{ ('a' ~ 'b') | upper }} {{ -1 | abs }} {{ 2 ** 2 | string ~ 'x' }}
{{ not 1 == 2 }} {{ not 'a' in 'b' }} {{ 1 + 1 is odd }} {{ 2 is even and 3 is odd }}
{{ '%s is %d years, %.2f, %5s|%-5s|%05d %x %%' % ('Al', 7, 1.005, 'ab', 'cd', 42, 255) }}
{{ '%s' % 'x' }} {{ '%s' % none }} {{ '%r' % 'x' }} {{ '%s' % 1.0 }} {{ '%(a)s' % {'a': 1} }}
{{ '%d' % 'x' }}
{{ '%s %s' % (1,) }}
{{ '{} {1}'.format(1, 2) }}
{{ '{!r}'.format('a') }}
{{ '{} {}'.format(1, none) }} {{ '{1}{0}'.format('a', 'b') }} {{ '{x:>5}|{y:.2f}'.format(x='a', y=2) }} {{ '{{}}'.format() }} {{ '{} {}'.format([1, 'a'], {'b': 2.5}) }} {{ '{:d} {:05.1f} {:,}'.format(3, 2.25, 1234567) }}
{{ '{}'.format() }}
{{ '{:d}'.format('x') }}
{{ +1 }}
{{ - 1 }} {{ 1 - -1 }}
{{ true is true }} {{ 1 is true }} {{ false is false }} {{ True }} {{ None }} {{ False }}
{{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 3 is gt(2) }} {{ 2 is in [1, 2] }} {{ 'a' is in('abc') }}
{{ list is not string and list is not none }}
{{ 10000000000 * 10000000000 }} {{ 2 ** 70 }}
{{ 9007199254740993 + 0 }} {{ 0.1 * 3 }} {{ 1e3 }} {{ 5 // 2.0 }} {{ 3.0 == 3 }}
{{ 'a' 'b' }}
{{ "x" if "x" is string and ("y" is not number) }}
{{ [1, 2, 3,] }} {{ {'a': 1,} }}
{{ (1, 2)[0] }} {{ {'a': {'b': 2}}.a.b }} {{ {'a': 1}['a'] }} {{ [[1, 2], [3]][0][1] }}
""",
    "slices": """
{{ list[0] }} {{ list[-1] }} {{ list[1:] }} {{ list[:-1] }} {{ list[::-1] }} {{ list[::2] }} {{ list[5:] }} {{ list[-2:] }} {{ list[2:0:-1] }} {{ list[:] }}
{{ 'héllo'[0] }} {{ 'héllo'[-1] }} {{ 'héllo'[1:3] }} {{ 'héllo'[::-1] }} {{ 'héllo'[-3:] }} {{ 'héllo'[::2] }} {{ 'héllo'[3:1:-1] }}
{{ (1, 2, 3)[1:] }} {{ messages[1:] | length }} {{ messages[::-1][0].role }} {{ messages[-1].role }} {{ messages[-1]['role'] }}
{{ list[1:2] == [1] }} {{ list[-10:10] }} {{ list[n:] }} {{ range(10)[2:5] | list }} {{ range(5)[1] }}
{{ list[::0] }}
{{ map[1:] }}
{{ none[1:] }}
{{ missing[1:] }}
{{ list['a'] }}|
{{ list[true] }}
{{ map['a']['x'][1] }} {{ map.a.x[0] }} {{ map['a'].x[-1] }} {{ map.a.x.0 }}
{{ list.1 }} {{ messages.0.role }}
{{ list[0:none] }} {{ list[none:2] }}
{% for m in messages[::-1] %}{{ m.role }}{{ loop.index0 }}{{ loop.last }} {% endfor %}
{% for m in messages[1:-1] %}{{ m.role }} {% endfor %}
{% for c in 'añ🙂' %}[{{ c }}]{% endfor %}
""",
    "loops": """
{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}
{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {{ loop.previtem is defined }} {{ loop.nextitem is defined }};{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}
{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}never{% endfor %}
{% for x in [] %}{{ x }}{% else %}nothing{% endfor %}
{% for x in list if x > 1 %}{{ x }}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}
{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}
{% for k in map %}{{ k }};{% endfor %}
{% for k, v in map | dictsort %}{{ k }}={{ v }};{% endfor %}
{% for k, v in map | items %}{{ k }};{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }};{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{{ b }};{% endfor %}
{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }};{% endfor %}
{% for x in list %}{% for y in words %}{{ loop.index }}{{ loop.depth }}{% endfor %}{{ loop.index }};{% endfor %}
{% for x in list %}{% set outer = loop %}{% for y in [1, 2] %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}
{% set x = 1 %}{% for y in list %}{% set x = y %}{{ x }}{% endfor %}{{ x }}
{% for x in list %}{% set z = x %}{% endfor %}{{ z is defined }}
{% set ns = namespace(i=0, last=none) %}{% for x in list %}{% set ns.i = ns.i + x %}{% set ns.last = x %}{% endfor %}{{ ns.i }} {{ ns.last }}
{% set ns = namespace() %}{{ ns.a is defined }}{% set ns.a = 1 %}{{ ns.a }}{{ ns['a'] }}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}
{% set ns = namespace(_x=1) %}{{ ns._x }}
{% set map.z = 1 %}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a, b = b, a %}{{ a }}{{ b }}
{% set (a, b) = [1, 2] %}{{ a }}{{ b }}
{% set a, b = [1, 2, 3] %}
{% if true %}{% set q = 1 %}{% endif %}{{ q }}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% with %}{% set a = 5 %}{{ a }}{% endwith %}{{ a is defined }}
{% set a %}block {{ n }}{% endset %}[{{ a }}]
{% set a | upper %}block{% endset %}[{{ a }}]
{% set a | replace('b', 'c') | trim %} block {% endset %}[{{ a }}]
{% for i in range(2, 10, 3) %}{{ i }}{% endfor %} {% for i in range(3, 0, -1) %}{{ i }}{% endfor %} {% for i in range(-2) %}{{ i }}{% endfor %}
{% for i in range(100001) %}{% endfor %}
{% for m in messages %}{% if loop.first and m.role == 'system' %}S{% elif m.role == 'user' %}U{% else %}?{% endif %}{% endfor %}
{% for m in messages | reverse %}{{ m.role }} {% endfor %}
{% for x in list | sort(reverse=true) %}{{ x }}{% if not loop.last %}, {% endif %}{% endfor %}
{% for x in 'a b'.split() %}{{ x }}.{% endfor %}
{% for x in list %}{{ x }}{% break %}{% endfor %}|{% for x in [] %}{% endfor %}|
{% break %}
{{ loop is defined }}
{% for x in list %}{% if loop.nextitem is defined and loop.nextitem > x %}up{% else %}-{% endif %}{% endfor %}
{% for x in (1, 2) %}{% if false %}{% endif %}{{ x }}{% endfor %}
{% for k, v in rows[0].items() | list %}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}
{% set ns = namespace(found=false) %}{% for m in messages[::-1] %}{% set i = (messages | length - 1) - loop.index0 %}{% if not ns.found and m.role == 'user' and not (m.content is string and m.content.startswith('<tool')) %}{% set ns.found = true %}{{ i }}{% endif %}{% endfor %}
""",
    "methods": """
[{{ space.strip() }}] [{{ space.lstrip() }}] [{{ space.rstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abcba'.strip('ab') }}] [{{ '\\n\\na\\n'.rstrip('\\n') }}] [{{ 'abc'.lstrip('') }}] [{{ ' a '.strip(none) }}]
{{ text.split() }} {{ text.split('\\n') }} {{ 'a,b,c'.split(',', 1) }} {{ 'abc'.split('x') }} {{ ''.split() }} {{ ''.split(',') }} {{ ' a  b '.split(' ') }} {{ 'a b c'.split(none, 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a,b'.split(sep=',') }}
{{ 'a'.split('') }}
{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b  c'.rsplit() }}
{{ text.splitlines() }} {{ text.splitlines(true) }} {{ 'a\\n'.splitlines() }} {{ ''.splitlines() }} {{ 'a\\x0bb\\u2028c'.splitlines() }}
{{ 'aXbX'.partition('X') }} {{ 'aXbX'.rpartition('X') }} {{ 'a'.partition('X') }}
{{ 'aaa'.replace('a', 'b') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ 'ab'.replace('', '-') }} {{ 'aaa'.replace('a', 'b', -1) }}
{{ 'a'.replace('a', 1) }}
{{ 'hello wORLD'.title() }} {{ "it's o'neil-x 3rd".title() }} {{ 'hELLO'.capitalize() }} {{ 'é ß'.upper() }} {{ 'ÀB'.lower() }} {{ 'aBc'.swapcase() }}
{{ 'ß'.casefold() }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }}
{{ 'abcabc'.find('c') }} {{ 'abcabc'.rfind('c') }} {{ 'abc'.find('x') }} {{ 'abcabc'.find('a', 1) }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('a', 1) }} {{ 'éa'.find('a') }}
{{ 'abc'.index('c') }} {{ 'abcabc'.rindex('b') }}
{{ 'abc'.index('x') }}
{{ ', '.join(['a', 'b']) }} {{ ''.join([]) }}|{{ '-'.join('abc') }} {{ '-'.join(map) }} {{ ','.join(words | map('upper')) }}
{{ ', '.join(['x', 1]) }}
{{ 'abc'.isalpha() }} {{ '1'.isdigit() }} {{ '½'.isnumeric() }} {{ '²'.isdigit() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'A'.isupper() }} {{ 'a'.islower() }} {{ ''.isalpha() }}
{{ '٣'.isdecimal() }}
{{ 'Ab Cd'.istitle() }}
{{ 'a_1'.isidentifier() }}
{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '.') }}|{{ 'a'.center(4) }}|{{ '7'.zfill(3) }}|{{ '-7'.zfill(4) }}
{{ 'prefix-a'.removeprefix('prefix-') }} {{ 'a.txt'.removesuffix('.txt') }} {{ 'a'.removeprefix('b') }}
{{ 'a\\tb'.expandtabs(4) }}
{{ 'abc'.encode() }}
{{ 'a'.nothing() }}
{{ 'a'.__class__ }}
{{ ''.__class__.__mro__ }}
{{ map.get('b') }} {{ map.get('z') }} {{ map.get('z', 'd') }} {{ map.get('C', 'd') }} {{ map.a.get('x')[1] }} {{ messages[0].get('content', '')[:3] }} {{ map.get('z', default='q') if false else 1 }}
{{ map.get() }}
{{ schema.properties.items() | list | length }} {% for k, v in schema.properties.items() %}{{ k }}:{{ v.type }} {% endfor %}
{{ schema.properties.keys() | list }} {{ schema.properties.get('get').type }} {{ schema.properties.values() | list | length }}
{{ schema.properties['items'].type }} {{ schema['properties']['get']['type'] }}
{{ map.copy() }} {{ list.copy() }} {{ list.count(1) }} {{ list.index(2) }} {{ (1, 2, 1).count(1) }}
{{ list.append(1) }}
{{ map.update({'a': 1}) }}
{{ list.pop() }}
{{ map.pop('a') }}
{{ list.sort() }}
{{ map.clear() }}
{{ dict(a=1, b='x') }} {{ dict({'a': 1}, b=2) }} {{ dict() }}
{{ dict([('a', 1)]) }}
{{ dict.fromkeys(['a', 'b'], 0) }}
{{ 5.5.is_integer() }}
{{ (5).bit_length() }}
{{ '{:>10}'.format('x') }}|{{ '{0}-{0}'.format('x') }}|{{ '{a[0]}'.format(a=[1]) }}|{{ '{a.b}'.format(a={'b': 1}) if false }}
{{ 'a-b_c'.translate({45: ' '}) }}
{{ 'Hello'[0].lower() ~ 'Hello'[1:] }} {{ 'a b'.split()[-1].upper().lower() }} {{ messages[0].content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}
{% set j = joiner(', ') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}
{{ '½'.isdigit() }}
""",
}
