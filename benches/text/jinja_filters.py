"""More of `jinja_cases.py`: filters, tests, JSON, macros, whitespace, dates, and what must be refused."""

CASES = {
    "filters": """
[{{ space | trim }}] [{{ 'xax' | trim('x') }}] {{ text | length }} {{ list | length }} {{ map | length }} {{ 'é🙂' | length }} {{ list | count }}
{{ n | length }}
{{ words | join }} {{ words | join(', ') }} {{ list | join('-') }} {{ rows | join(',', attribute='k') }} {{ [1, none, true, 'a'] | join(' ') }} {{ 'abc' | join('.') }}
{{ rows | map(attribute='k') | list }} {{ rows | map(attribute='t.d', default='-') | list }} {{ words | map('upper') | join }} {{ words | map('replace', 'a', 'z') | list }} {{ rows | map(attribute='t.d') | list }} {{ words | map('default', 'x') | list }} {{ list | map('string') | list }}
{{ rows | selectattr('k', 'equalto', 'x') | map(attribute='v') | list }} {{ rows | selectattr('t') | list | length }} {{ rows | rejectattr('k', 'eq', 'x') | list }} {{ rows | selectattr('t.d', 'defined') | list | length }} {{ rows | selectattr('v', '>', 1) | list | length }} {{ rows | selectattr('k', 'in', ['y']) | list | length }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | selectattr('role', '==', 'system') | first is defined }} {{ messages | rejectattr('tool_calls', 'undefined') | list | length }}
{{ list | select('odd') | list }} {{ list | reject('gt', 2) | list }} {{ [0, 1, ''] | select | list }} {{ [0, none, 2] | reject('none') | list }} {{ words | select('in', ['a']) | list }}
{% for g in rows | groupby('k') %}{{ g.grouper }}:{{ g.list | length }} {{ g[0] }} {% endfor %}{% for k, v in rows | groupby('k') %}{{ k }}{{ v | map(attribute='v') | list }}{% endfor %}
{{ list | first }} {{ list | last }} {{ [] | first is defined }} {{ 'abc' | first }} {{ 'abc' | last }} {{ range(3) | last }}
{{ [] | last }}|{{ [] | first }}|
{{ missing | default('d') }} {{ '' | default('d') }}| {{ '' | default('d', true) }} {{ none | default('d') }} {{ none | default('d', boolean=true) }} {{ missing | d(1) }} {{ messages[0].x | default(none) is none }}
{{ missing.a | default('d') }}
{{ 'aBc' | upper }} {{ 'aBc' | lower }} {{ 'hello wORLD-x it\\'s (a) [b]' | title }} {{ 'hELLO' | capitalize }} {{ 5 | upper }} {{ none | lower }}
{{ map | dictsort }} {{ map | dictsort(reverse=true) }} {{ {'b': 1, 'A': 3, 'c': 2} | dictsort(by='value') }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2} | dictsort(case_sensitive=true) }}
{{ map | items | list }} {{ map | list }} {{ 'abc' | list }} {{ (1, 2) | list }} {{ range(3) | list }} {{ map.items() | list | first }}
{{ missing | items | list }}
{{ n | list }}
{{ ['a', 'A', 'b', 'a'] | unique | list }} {{ ['a', 'A'] | unique(case_sensitive=true) | list }} {{ rows | unique(attribute='k') | map(attribute='v') | list }} {{ [1, 1.0, true] | unique | list }}
{{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ list | sort }} {{ list | sort(reverse=true) }} {{ rows | sort(attribute='v') | map(attribute='v') | list }} {{ rows | sort(attribute='k,v') | map(attribute='v') | list }} {{ 'cab' | sort | join }}
{{ [1, 'a'] | sort }}
{{ list | reverse | list }} {{ 'abc' | reverse }} {{ words | reverse | join }}
{{ 5 | string ~ 'x' }} {{ none | string }} {{ true | string }} {{ [1, 'a'] | string }} {{ 2.0 | string }} {{ 'a' | string | length }}
{{ '42' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '3.7' | int }} {{ 3.9 | int }} {{ -3.9 | int }} {{ '0x1A' | int(base=16) }} {{ true | int }} {{ ' 5 ' | int }} {{ none | int }} {{ '1_0' | int }}
{{ '3.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ 'x' | float(1.5) }} {{ '1e3' | float }} {{ none | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.567 | round(2) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ 1234 | round(-2) }} {{ 2.675 | round(2) }} {{ 5 | round }} {{ -2.5 | round }} {{ 2.5 | round | int }}
{{ 'a\\nb\\n\\nc' | indent }}|{{ 'a\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\n\\nb' | indent(2, false, true) }}|{{ 'a\\nb' | indent(width=1, first=true, blank=true) }}|{{ 'a\\nb' | indent('> ') }}
{{ 'a\\nb\\n' | indent(2) }}|
{{ 'aaa' | replace('a', 'b') }} {{ 'aaa' | replace('a', 'b', 1) }} {{ 5 | replace('5', '6') }}
{{ list | min }} {{ list | max }} {{ words | min }} {{ words | max }} {{ [] | min }}| {{ rows | max(attribute='v') }} {{ words | max(case_sensitive=true) }} {{ rows | min('v') if false else 0 }}
{{ list | sum }} {{ rows | sum(attribute='v') }} {{ list | sum(start=10) }} {{ [] | sum }} {{ [1.5, 2] | sum }} {{ [[1], [2]] | sum(start=[]) }}
{{ list | batch(2) | list }} {{ list | batch(2, 0) | list }} {{ range(5) | slice(2) | list }} {{ range(5) | slice(3, 'x') | list }} {{ [] | batch(2) | list }}
{{ -5 | abs }} {{ 5.5 | abs }} {{ minus | abs }}
{{ '%s-%s' | format('a', 1) }} {{ '%(x)s' | format(x=2) }} {{ 'no' | format }}
{{ '<a href="x">&\\'' | escape }} {{ '<' | e }} {{ '<b>' | safe }}
{{ '<' | forceescape }}
{{ ('<' | e) ~ '<' }} {{ '<b>' ~ ('<' | safe) }}
{{ 'a b c d' | wordcount }}
{{ 'one two three' | truncate(8) }}
{{ 'one two three four' | wordwrap(8) }}
{{ 'a' | center(5) }}
{{ 'a b&c/d' | urlencode }}
{{ 1000 | filesizeformat }}
{{ '<p>a <b>b</b></p>' | striptags }}
{{ [1, [2]] | pprint }} {{ 'x' | pprint }}
{{ {'a': 1} | xmlattr }}
{{ messages[0] | attr('role') }} {{ map | attr('b') }}|
{{ 'a' | nothing }}
{{ words | map('nothing') | list }}
{% filter upper %}hello {{ word }}{% endfilter %} {% filter replace('l', 'L') | trim %} hello {% endfilter %}
{{ words | map('first') | list }} {{ ['ab', 'cd'] | map('length') | sum }} {{ messages | map(attribute='role') | unique | join(',') }} {{ [[1, 2], [3]] | map('join', '-') | list }}
{{ list | map('int') | select('>=', 2) | sort | join(',') }} {{ messages | map(attribute='content') | select('string') | list | length }}
{{ rows | map(attribute='nothing') | list }} {{ rows | map(attribute='nothing.more') | list }}
{{ 'a,b' | split(',') }}
{{ 'yes' | bool }}
{{ [1] | zip([2]) | list }}
{{ 'x' | lines }}
{{ [1] | random }}
""",
    "tests": """
{{ 'a' is string }} {{ 1 is string }} {{ missing is string }} {{ none is string }} {{ [1] is string }}
{{ map is mapping }} {{ list is mapping }} {{ 'a' is mapping }} {{ none is mapping }} {{ messages[0] is mapping }} {{ dict(a=1) is mapping }}
{{ list is iterable }} {{ 'a' is iterable }} {{ map is iterable }} {{ 1 is iterable }} {{ none is iterable }} {{ missing is iterable }} {{ (1,) is iterable }} {{ range(2) is iterable }} {{ map.items() is iterable }} {{ (list | map('string')) is iterable }}
{{ list is sequence }} {{ 'a' is sequence }} {{ map is sequence }} {{ 1 is sequence }} {{ none is sequence }} {{ (1,) is sequence }} {{ missing is sequence }} {{ list[1:] is sequence }} {{ messages[1:] is iterable }}
{{ map.items() is sequence }} {{ map.keys() is sequence }}
{{ (list | map('string')) is sequence }}
{{ list | map('string') | tojson }}
{{ ('<' | safe) + '<' }}
{{ none is none }} {{ missing is none }} {{ 0 is none }} {{ missing is defined }} {{ missing is undefined }} {{ none is undefined }} {{ messages[0].nope is defined }} {{ map.C is defined }} {{ map.C is none }}
{{ true is boolean }} {{ 1 is boolean }} {{ 1 is integer }} {{ true is integer }} {{ 1.0 is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ 1 is number }} {{ true is number }} {{ '1' is number }} {{ 1.5 is number }} {{ true is float }}
{{ true is sameas true }} {{ 1 is sameas true }} {{ none is sameas none }} {{ false is sameas(false) }} {{ missing is sameas none }}
{{ 4 is divisibleby 2 }} {{ 3 is odd }} {{ 3 is even }} {{ 'a' is lower }} {{ 'A' is upper }} {{ 'Ab' is upper }} {{ '' is lower }} {{ 'a1' is lower }}
{{ raise_exception is callable }} {{ 'a' is callable }} {{ missing is callable }} {{ namespace is defined }} {{ strftime_now is defined }} {{ raise_exception is defined }}
{{ 1 is not none }} {{ not (1 is none) }} {{ missing is not defined }} {{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ 'x' is escaped }}
{{ 1 is nothing }}
{{ 'a' is in ['a'] }} {{ 'tools' in ['a', 'tools'] }} {{ 'role' in messages[0] }} {{ 'content' not in messages[0] }} {{ 'x' in messages[0].content }}
{{ 1 is ge 1 }} {{ 1 is lessthan 2 }} {{ 'a' is equalto 'a' }} {{ [1] is eq [1] }}
{{ tools is defined and tools is not none }} {{ tools is iterable }} {{ tools | length > 0 }}
""",
    "tojson": """
{{ map | tojson }} {{ list | tojson }} {{ word | tojson }} {{ nil | tojson }} {{ yes | tojson }} {{ pi | tojson }} {{ whole | tojson }} {{ n | tojson }}
{{ big | tojson }} {{ small | tojson }} {{ huge | tojson }} {{ 1e16 | tojson }} {{ 1e-5 | tojson }} {{ 0.0001 | tojson }} {{ [0.1, -0.0, 123456789.123] | tojson }} {{ 1.5e300 | tojson }}
{{ map | tojson(indent=2) }}
{{ map | tojson(indent=4) }}
{{ rows | tojson(indent=0) }}
{{ [[], {}, [[]], {'a': {}}] | tojson(indent=1) }}
{{ map | tojson(separators=(',', ':')) }} {{ map | tojson(separators=(', ', ': ')) }}
{{ {'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true) }} {{ map | tojson(indent=2, sort_keys=true, separators=(',', ' : ')) }}
{{ map | tojson(ensure_ascii=false) }} {{ 'é🙂\\u2028\\x7f' | tojson(ensure_ascii=true) }} {{ 'é🙂\\u2028' | tojson }}
{{ map | tojson(True) }} {{ 'é' | tojson(false, 2) }} {{ [1] | tojson(false, 2) }} {{ map | tojson(indent='--') }}
{{ quotes | tojson }}
{{ tools | tojson }}
{{ tools | tojson(indent=4) }}
{{ {'a': none, 1: 2, true: 3, none: 4, 1.5: 5} | tojson }}
{{ (1, 'a') | tojson }} {{ [(1, 2)] | tojson(indent=2) }}
{{ range(3) | tojson }}
{{ map.items() | tojson }}
{{ missing | tojson }}
{{ [missing] | tojson }}
{{ namespace(a=1) | tojson }}
{{ map | tojson | length }} {{ (map | tojson) ~ '<&>' }} {{ map | tojson | replace('"', "'") }} {{ '</script>' | tojson }}
{% for t in tools %}{{ t | tojson }}{{ t.function | tojson(indent=2) }}{{ t.function.parameters.properties | tojson }}{% endfor %}
{{ map | tojson(nothing=1) }}
{{ messages | tojson }}
{{ '\\u0000\\u0001\\u001f\\b\\f\\r' | tojson }}
""",
    "macros": """
{% macro m(a, b='x', c=none) %}[{{ a }}|{{ b }}|{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, c=3) }}{{ m(b=1, a=2) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, z=3) }}
{% macro m() %}({{ caller() }}){% endmacro %}{% call m() %}inside {{ n }}{% endcall %}
{% macro m(x) %}({{ caller(x, 2) }}){% endmacro %}{% call(a, b) m(1) %}{{ a }}+{{ b }}{% endcall %}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}
{% macro f(n) %}{% if n > 1 %}{{ n }}*{{ f(n - 1) }}{% else %}1{% endif %}{% endmacro %}{{ f(5) }}
{% macro m(x) %}{% set y = x %}{{ y }}{% endmacro %}{{ m(1) }}{{ y is defined }}{{ m(2) | int + 1 }}
{% macro m(x) %} {{ x }} {% endmacro %}{% set r = m('a') | trim %}[{{ r }}]{{ m('a') ~ 'b' }}{{ m('a') == ' a ' }}{{ m('a') is string }}{{ m('a') | length }}
{{ 'there' if m is defined else 'later' }}{% macro m(a, b=1) %}{% endmacro %}{{ m.name }}
{% macro t(s, top=true) -%}{%- if s.type == 'object' -%}{{ '{' }}{% for k, v in s.properties.items() %}{{ k }}: {{ t(v, false) }}{% if not loop.last %}, {% endif %}{% endfor %}{{ '}' }}{%- elif s.type == 'array' -%}{{ t(s.of, false) if s.of else 'any' }}[]{%- else -%}{{ s.type }}{%- endif -%}{%- endmacro %}{{ t(schema) }}
{{ schema.properties['keys']['items'] is defined }}
{% macro a() %}A{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}
{% macro m() %}{{ messages | length }}{{ n }}{% endmacro %}{% set n = 9 %}{{ m() }}
{% set n = 9 %}{% macro m() %}{{ n }}{% endmacro %}{{ m() }}
{% for x in list %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(list) %}{% for x in list %}{{ x }}{% endfor %}{% endmacro %}{{ m([1, 2]) }}{{ m(list=[3]) }}
{% macro m(a) %}{{ a is defined }}{{ a }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m(missing) }}
{% set ns = namespace(n=0) %}{% macro m() %}{% set ns.n = ns.n + 1 %}{% endmacro %}{{ m() }}{{ m() }}{{ ns.n }}
{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}
{% macro m(a, a) %}{% endmacro %}
{% generation %}a{{ n }}{% endgeneration %} {%- generation -%} b {%- endgeneration -%} c
{% generation %}{% set inner = 1 %}{{ inner }}{% endgeneration %}{{ inner is defined }}
{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ loop.index }}{% endgeneration %}{% endif %}{% endfor %}
{% set ns = namespace(a=1) %}{% generation %}{% set ns.a = 2 %}{% endgeneration %}{{ ns.a }}
{{ '{% generation %}' }} {# {% generation %} #}
{% raw %}{{ x }}{% if %}{% generation %}{% endraw %}
""",
    "dates": """
{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%d') }}|{{ strftime_now('%B %d, %Y') }}|{{ strftime_now("%H:%M:%S") }}
{{ strftime_now('%A %a %p %I %y %j %U %W %u %w %e %-d %-m %D %F %T %R %h %n%t%% %C %G %V %f') }}
{{ strftime_now('%c') }}|{{ strftime_now('%x') }}|{{ strftime_now('%X') }}|{{ strftime_now('') }}|{{ strftime_now('no') }}|{{ strftime_now('é %d') }}
{{ strftime_now('%Y') | int - 1 }} {% set date_string = strftime_now('%d %b %Y') %}{{ date_string.split(' ')[2] }}
{{ strftime_now(format='%Y') }}
{{ strftime_now() }}
{{ strftime_now(5) }}
{% if strftime_now is defined %}{% set date = strftime_now("%d %b %Y") %}{% else %}{% set date = "26 Jul 2024" %}{% endif %}{{ date }}
""",
    "errors": """
{{ raise_exception('roles must alternate') }}
{{ raise_exception('é ' ~ messages[0].role ~ ' "q"') }}
{{ raise_exception() }}
{% if true %}{{- raise_exception("System role not supported") -}}{% endif %}
{% if false %}{{ raise_exception('never') }}{% endif %}fine
{% if %}
{% for %}{% endfor %}
{{ 'a }}
{{ a
{% if true %}
{% endif %}
{{ 1 + }}
{{ a b }}
{% unknown %}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{% do list.append(1) %}
{% trans %}a{% endtrans %}
{% block a %}inside{% endblock %}
{% autoescape true %}{{ '<' }}{% endautoescape %}
{# comment
{{ "a" | upper( }}
{{ messages.append({}) }}
{{ ''['__class__'] }}|
{{ messages.__class__ }}|
{% set true = 1 %}
{% set messages = messages[1:] %}{{ messages | length }}
{% set loop_messages = messages %}{{ loop_messages[0]['content'] }}
{{ {} .a is defined }} {{ {}.keys() | list }}
{{ [] ~ {} }} {{ {1, 2} }}
{{ a := 1 }}
{{ lambda x: x }}
{{ [x for x in list] }}
{{ f'{n}' }}
{{ list[0] if list else '' }} {{ (list or [0])[0] }}
{{ eval('1') }}
{{ range(3)[5] is defined }}
{{ debug() }}
""",
}

# Of several lines: these are told apart by a line of dashes.
LINES = """
{% for m in messages %}
    {% if m.role == 'user' %}
  [U]{{ m.content }}
    {% endif %}
{% endfor %}
end
---
{%- for m in messages -%}
    {{- m.role -}}
{%- endfor -%}
---
a
  {%+ if true %}
b
  {% endif +%}
c
---
a {%- if true %} b {%- endif %} c
{{- ' d ' -}}
 e
---
a
{# comment #}
b
  {# comment #}  c
{#- comment -#}
  d
---
{% set x %}
line
{% endset %}[{{ x }}]
{% raw %}
 {{ raw }}
{% endraw %}
x
---
{% if true %}

two
{% endif %}


---
{{ 'a' }}
{{ 'b' }}  
	{{ 'c' }}
	{% if true %}tab{% endif %}  
d
---
   {%- if true -%}   x   {%- endif -%}   
   y
---
{% macro m(x) %}
  <{{ x }}>
{% endmacro %}
{{ m(1) }}
{{- m(2) }}
---
{% for i in [1, 2] -%}
  {{ i }}
{%- endfor %}

{% for i in [1, 2] %}{{ i }}
{% endfor %}
---
{{ "multi
line" }}
{{ [
  1,
  2
] }}
{%
  if true
%}y{%
  endif
%}
---
a{% if true %}
b{% endif %}
c  {% if true %}
d
{% endif %}
---
<{{ messages[0].content }}>{# a #}
{% generation %}
  x
{% endgeneration %}
y
---
{%- set ns = namespace(a='') -%}
{%- for x in list -%}
  {%- set ns.a = ns.a ~ x -%}
{%- endfor -%}
{{ ns.a }}
---
x   {#- c -#}   y   {#+ d +#}   z
  {#- e #}
w
---
{{ '  ' }}{% if true %}
{% endif %}{{ '\\n' }}
{% set x = 1 %} {% set y = 2 %}
{% set z = 3 %}
!
"""
