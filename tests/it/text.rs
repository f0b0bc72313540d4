//! Text equals the references': prompts those of HuggingFace's Jinja, token ids and decoded text those of `tokenizers`.
//!
//! The files of `cases/text_*.json` are made by `benches/text_goldens.py`.

use hashwatt::text::chat_template::{ChatTemplate, Message};
use serde_json::{Map, Value};

const JINJA: &str = include_str!("cases/text_jinja.json");
const CHATS: &str = include_str!("cases/text_chats.json");

/// What ours renders in another way, as `docs/text.md` says. All else is the same, or refused by both.
const OTHERWISE: &[&str] = &[
    "{{ range(3) }}",
    "{{ '' ~ 1e20 }}",
    "{{ range(3) | tojson }}",
    "{{ missing < 1 }}",
    "{{ none < 1 }}",
    "{{ 'a' < 1 }}",
    "{{ [1, 'a'] | sort }}",
    "{{ 1 in 'a1' }}",
    "{% for x in none %}{{ x }}{% else %}none{% endfor %}",
    "{{ none[1:] }}",
    "{{ missing[1:] }}",
    "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "{{ namespace(a=1) | tojson }}",
    "{{ '½'.isdigit() }}",
    "{{ (list | map('string')) is sequence }}",
    "{{ list | map('string') | tojson }}",
    "{{ ('<' | safe) + '<' }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m(a, a) %}{% endmacro %}",
    "{{ schema.properties['keys']['items'] is defined }}",
];

/// What ours does not have: such a template is refused.
const REFUSED: &[&str] = &[
    "' % (",
    "'%s' % 'x'",
    "{!r}",
    "{{ +1 }}",
    "namespace({",
    ".casefold()",
    ".isdecimal()",
    ".istitle()",
    ".isidentifier()",
    ".expandtabs(",
    ".encode()",
    ".translate(",
    ".fromkeys(",
    ".is_integer()",
    ".bit_length()",
    "dict([(",
    "joiner(",
    "cycler(",
    "| forceescape",
    "| wordcount",
    "| truncate(",
    "| wordwrap(",
    "| center(",
    "| urlencode",
    "| filesizeformat",
    "| striptags",
    "| pprint",
    "| xmlattr",
    "| attr(",
    "| random",
    "varargs",
];

fn goldens(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The frozen day.
fn now(goldens: &Value) -> u64 {
    goldens["made_by"]["now"].as_u64().unwrap()
}

fn message(json: &Value) -> Message {
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_string);
    Message {
        role: text("role").unwrap(),
        content: text("content").unwrap(),
        name: text("name"),
        reasoning: text("reasoning_content"),
        tool_calls: json.get("tool_calls").and_then(Value::as_array).cloned().unwrap_or_default(),
        tool_call_id: text("tool_call_id"),
    }
}

fn messages(json: &Value) -> Vec<Message> {
    json.as_array().unwrap().iter().map(message).collect()
}

/// What differs, from the first character that does.
fn difference(ours: &Result<String, String>, theirs: Option<&str>) -> Option<String> {
    match (ours, theirs) {
        (Ok(ours), Some(theirs)) if ours == theirs => None,
        (Err(_), None) => None,
        (Ok(ours), Some(theirs)) => {
            let same = ours.chars().zip(theirs.chars()).take_while(|(a, b)| a == b).count();
            let from = |text: &str| text.chars().skip(same.saturating_sub(10)).take(80).collect::<String>();
            Some(format!("from character {same}:\n  ours   {:?}\n  theirs {:?}", from(ours), from(theirs)))
        }
        (Ok(ours), None) => Some(format!("HuggingFace refuses it, ours is {ours:?}")),
        (Err(e), Some(theirs)) => Some(format!("ours is refused ({e}), theirs is {theirs:?}")),
    }
}

#[test]
fn small_templates_render_as_huggingfaces() {
    let goldens = goldens(JINJA);
    let (messages, tools) = (messages(&goldens["messages"]), &goldens["tools"]);
    let arguments: &Map<String, Value> = goldens["context"].as_object().unwrap();
    let mut wrong = Vec::new();
    for case in goldens["cases"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let ours = ChatTemplate::new(source, "", "")
            .and_then(|t| t.render_at(now(&goldens), &messages, false, Some(tools), arguments))
            .map_err(|e| e.to_string());
        let difference = difference(&ours, case["text"].as_str());
        let is_known = match &ours {
            Ok(_) => OTHERWISE.contains(&source),
            Err(_) => REFUSED.iter().any(|part| source.contains(part)),
        };
        match (difference, is_known && (ours.is_ok() || case["text"].is_string())) {
            (Some(difference), false) => wrong.push(format!("{}: {source}\n {difference}", case["subject"])),
            (None, true) => wrong.push(format!("{source}\n is the same now: take it off the list")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn chats_of_each_family_render_as_huggingfaces() {
    let goldens = goldens(CHATS);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases/chat_templates");
    let mut wrong = Vec::new();
    let (mut rendered, mut refused) = (0, 0);
    for case in goldens["cases"].as_array().unwrap() {
        let (family, name) = (case["template"].as_str().unwrap(), case["conversation"].as_str().unwrap());
        let source = std::fs::read_to_string(folder.join(format!("{family}.jinja"))).unwrap();
        let template = ChatTemplate::of_checkpoint(Some(&source), &goldens["tokens"][family]);
        let template = template.unwrap_or_else(|e| panic!("{family}: {e}")).unwrap();
        let talk = &goldens["conversations"][name];
        let mut more = talk["more"].as_object().unwrap().clone();
        let tools = more.remove("tools");
        let prompt = case["prompt"].as_bool().unwrap();
        let ours = template
            .render_at(now(&goldens), &messages(&talk["messages"]), prompt, tools.as_ref(), &more)
            .map_err(|e| e.to_string());
        rendered += usize::from(ours.is_ok());
        refused += usize::from(ours.is_err());
        if let Some(difference) = difference(&ours, case["text"].as_str()) {
            wrong.push(format!("{family}, {name}, prompt {prompt} {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rendered > 300 && refused > 50, "{rendered} rendered, {refused} refused");
}

/// Each once took hours, the machine's memory or the process; what one step does is not in the engine's own budget.
#[test]
fn a_template_that_grows_without_end_is_an_error_of_its_request() {
    let turns = |state: &str, step: &str, count: usize, end: &str| {
        format!("{{% set ns = namespace({state}) %}}{{% for i in range({count}) %}}{step}{{% endfor %}}{end}")
    };
    let doubled = |end: &str| turns("a=[1]", "{% set ns.a = [ns.a, ns.a] %}", 60, end);
    let deep = |step: &str, end: &str| turns("a=[1], b=[1]", step, 99_999, end);
    let mut sources = vec![
        // Sums of lists are made as they are read.
        turns("a=[1]", "{% set ns.a = ns.a + ns.a %}", 60, "{{ ns.a | length }}"),
        turns("a=[1] * 100000000", "{% set ns.a = ns.a + [] %}", 40, "{{ ns.a | length }}"),
        turns("a=(1,)", "{% set ns.a = ns.a + ns.a %}", 60, "{{ ns.a | length }}"),
        turns("a={'k': 1}", "{% set ns.a = {'a': ns.a, 'b': ns.a} %}", 60, "{{ ns.a ~ '' }}"),
        turns("a={'k': 1}", "{% set ns.a = dict(a=ns.a, b=ns.a) %}", 60, "{{ ns.a ~ '' }}"),
        turns("a='x'", "{% set ns.a = ns.a + ns.a %}", 60, "{{ ns.a | length }}"),
        turns("a='x'", "{% set ns.a = ns.a | replace('x', 'xxxxxxxxx') %}", 60, "{{ ns.a | length }}"),
        turns("a='x'", "{% set ns.a = [ns.a, ns.a, ns.a] | join(ns.a) %}", 60, "{{ ns.a | length }}"),
        "{% macro m(a, n) %}{% if n %}{{ m(a + a, n - 1) }}{% endif %}{% endmacro %}{{ m([1], 60) }}".into(),
        "{% for x in [[1]] recursive %}{{ loop([x + x]) }}{% endfor %}".into(),
        format!(
            "{{% set a = [1] %}}{}{{{{ a }}}}{}",
            "{% with a = a + a %}".repeat(60),
            "{% endwith %}".repeat(60)
        ),
        format!("{{{{ ([1] * 100000000{}) | length }}}}", " + []".repeat(40)),
        "{{ ['x' * 1000000] * 100000000 ~ '' }}".into(),
        "{{ {'a': {'b': ['x' * 1000000] * 100000000}} ~ '' }}".into(),
        "{{ range(10**9) | list | length }}{{ 'a' * 10**10 }}".into(),
        "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}".into(),
        // A long text costs each time that it is read.
        "{% set x = 'é' * 10000000 %}{% for i in range(99999) %}{% if x[9999999] %}{% endif %}{% endfor %}"
            .into(),
        format!("{{% set s = 'é' * 15000000 %}}{}", "{{ s[-1:] }}{% if s[5:6] %}{% endif %}".repeat(10_000)),
        // Depth is stack.
        deep("{% set ns.a = [ns.a] %}", ""),
        deep("{% set ns.a = {'a': ns.a} %}", ""),
        deep("{% set ns.a = {'a': ns.a.a[0:]} %}{% set ns.a = [ns.a] %}", ""),
        deep("{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}", "{{ ns.a == ns.b }}"),
        deep("{% set ns.a = namespace(a=ns.a) %}", ""),
        format!("{{% set n = namespace(a=[1]) %}}{}", "{% set n = namespace(a=n.a[0:]) %}".repeat(20_000)),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns ~ '' }}".into(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns == ns.a[0] }}".into(),
    ];
    let ends = [
        "ns.a == [ns.a]",
        "ns.a in [[ns.a]]",
        "{ns.a: 1}",
        "ns.a ~ ''",
        "ns.a | upper",
        "ns.a | tojson",
        "ns.a | join",
    ];
    sources.extend(ends.map(|end| doubled(&format!("{{{{ {end} }}}}"))));
    for source in &sources {
        let render = || ChatTemplate::new(source, "", "").and_then(|t| t.render(&[], true));
        let (result, peak) = crate::allocation::peak_of(render);
        let error = result.expect_err(source).to_string();
        assert!(error.starts_with("the chat template: ") && error.len() < 300, "{source}: {error}");
        assert!(peak < 384 << 20, "{source}: {peak} bytes");
    }
}

/// What grows within bounds is what it was.
#[test]
fn lists_that_a_template_makes_are_those_of_jinja() {
    for (source, text) in [
        (
            "{% set ns = namespace(a=[], d={}) %}{% for i in range(3) %}{% set ns.a = ns.a + [i, {'k': [i] * 2}] %}{% endfor %}{{ ns.a }}",
            "[0, {'k': [0, 0]}, 1, {'k': [1, 1]}, 2, {'k': [2, 2]}]",
        ),
        ("{% set a, b = (1, 2), [1, 2, 3][1:] %}{{ a + (3,) }}{{ b + [[0][0:]] }}", "(1, 2, 3)[2, 3, [0]]"),
        (
            "{% set d = {'a': [1, 2][:1]}.items() %}{{ d }}{{ (2 * 3 + 1) ** 2 - -1 }}",
            "dict_items([('a', [1])])50",
        ),
        (
            "{% for k, v in {'a': 1 + 1}.items() if v is not in [1 + 2] %}\n {{- k * 2 }}{% endfor %}\n.",
            "aa.",
        ),
        ("{% set ns = namespace(a=[1, 2][1:], b=1) %}{% set ns.b = 2 %}{{ ns.b }}{{ ns.a | length }}", "21"),
        ("{% set d = dict(a=[1, 2][::-1], b='x') %}{{ d.b }}{{ d['a'] }}{{ d | length }}", "x[2, 1]2"),
        ("{{ {'a': [1, 2] | reverse, 'b': 'x'}.b }}{{ {'k': {'a': [1][:]}}.k.a[-1] }}", "x1"),
        ("{{ 'abcd'[:] }}{{ 'abcd'[1:3] }}{{ [1, 2, 3][::-1][1 + 1] }}", "abcdbc1"),
        ("{% macro m(a, b=[1] + [2]) %}\n{{ a }}{{ b }}{% endmacro %}{{ m(1, b=m(0)) }}", "10[1, 2]"),
    ] {
        assert_eq!(ChatTemplate::new(source, "", "").unwrap().render(&[], true).unwrap(), text);
    }
    // A list that a loop adds to.
    let long = "{% set ns = namespace(a=[]) %}{% for i in range(2000) %}{% set rest = [1, 2][i:] %}{% set ns.a = ns.a + [{'a': i}] %}{% endfor %}{{ ns.a | length }}";
    assert_eq!(ChatTemplate::new(long, "", "").unwrap().render(&[], true).unwrap(), "2000");
}
