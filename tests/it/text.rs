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
