//! Chat templates: a list of messages in, one prompt out, as the checkpoint's author wrote it.
//!
//! Templates are programs from a downloaded file, so they run under a budget of steps and of output,
//! and whatever goes wrong in one is an error of that request.

use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::{Map, Value};

use super::TextError;
use super::template::{self, source};

/// Steps a rendering may take; the largest real templates take a few thousand for a long conversation.
const FUEL: u64 = 2_000_000;
/// Bytes of a template's source; the largest real ones have 20 000.
const MAX_SOURCE: usize = 128 << 10;
/// minijinja compiles (and frees) long chains of operators recursively, one frame a link; this is twice
/// what a source of [`MAX_SOURCE`] can use. Only what is touched is ever backed by memory.
const COMPILE_STACK: usize = 128 << 20;
/// Real templates take milliseconds; a chain of `~` takes time that grows faster than its square.
const COMPILE_TIME: Duration = Duration::from_secs(10);
/// Bytes a rendering may write.
const MAX_OUTPUT: usize = 32 << 20;

/// One message of a conversation, its content already plain text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    pub role: String,
    pub content: String,
    pub name: Option<String>,
    /// The thoughts before it, of an assistant.
    pub reasoning: Option<String>,
    /// Calls that an assistant made, in OpenAI's shape but for their arguments, which are an object.
    pub tool_calls: Vec<Value>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

impl Message {
    fn to_jinja(&self) -> Jinja {
        let mut pairs = vec![("role", Jinja::from(&self.role)), ("content", Jinja::from(&self.content))];
        let texts = [
            ("name", &self.name),
            // gpt-oss's template knows thoughts by another name than the others.
            ("thinking", &self.reasoning),
            ("reasoning_content", &self.reasoning),
            ("tool_call_id", &self.tool_call_id),
        ];
        pairs
            .extend(texts.into_iter().filter_map(|(name, text)| Some((name, Jinja::from(text.as_deref()?)))));
        if !self.tool_calls.is_empty() {
            let calls: Vec<Jinja> = self.tool_calls.iter().map(to_jinja).collect();
            pairs.push(("tool_calls", calls.into()));
        }
        Jinja::from_pairs(pairs)
    }
}

/// A compiled template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// By their names in the tokenizer's configuration: `bos_token` and the like. One it has not is undefined.
    tokens: Vec<(String, String)>,
    source: String,
    /// Another one for conversations with tools.
    with_tools: Option<Box<ChatTemplate>>,
}

impl ChatTemplate {
    /// Compiles a template. An empty token is none.
    ///
    /// # Errors
    /// A syntax error, or a source that is too long to be a template.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<ChatTemplate, TextError> {
        let tokens = [("bos_token", bos_token), ("eos_token", eos_token)].map(|(n, t)| (n.into(), t.into()));
        ChatTemplate::with_tokens(source, tokens.into())
    }

    /// The same with all special tokens that the tokenizer's configuration names.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn with_tokens(source: &str, mut tokens: Vec<(String, String)>) -> Result<ChatTemplate, TextError> {
        if source.len() > MAX_SOURCE {
            let problem = format!("it has {} bytes, at most {MAX_SOURCE} are taken", source.len());
            return Err(TextError::Template(problem));
        }
        // As Jinja reads a source, in its strings, too.
        let lines = source.replace("\r\n", "\n").replace('\r', "\n");
        let environment = compile_within(COMPILE_TIME, source::rewritten(&lines))?;
        Ok(ChatTemplate {
            environment,
            tokens: {
                tokens.retain(|(_, text)| !text.is_empty());
                tokens
            },
            source: lines,
            with_tools: None,
        })
    }

    /// The template of conversations with tools: this one, where there is none of their own.
    pub fn for_tools(&self) -> &ChatTemplate {
        self.with_tools.as_deref().unwrap_or(self)
    }

    /// True when it shows the model its tools.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// True when the template has a role `developer`; otherwise such a message is one of `system`.
    pub fn knows_developer(&self) -> bool {
        self.source.contains("developer")
    }

    /// What it was compiled from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The template of a checkpoint: `chat_template.jinja`, else `chat_template` of the tokenizer's
    /// configuration (a string, or a list of named ones of which `default` is taken, and `tool_use` for tools).
    ///
    /// # Errors
    /// A syntax error, or a `chat_template` of another form.
    pub fn of_checkpoint(file: Option<&str>, config: &Value) -> Result<Option<ChatTemplate>, TextError> {
        let token = |(key, value): (&String, &Value)| {
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            key.ends_with("_token").then(|| (key.clone(), text.to_string()))
        };
        let tokens: Vec<_> =
            config.as_object().map(|map| map.iter().filter_map(token).collect()).unwrap_or_default();
        let place = match file {
            Some(_) => "chat_template.jinja (of a GGUF file tokenizer.chat_template)",
            None => "tokenizer_config.json, chat_template",
        };
        let fail = |problem: String| TextError::Template(format!("{place}: {problem}"));
        let named = |all: &'_ [Value], name: &str| {
            let found = all.iter().find(|t| t.get("name").is_some_and(|n| n == name));
            found.and_then(|t| Some(t.get("template")?.as_str()?.to_string()))
        };
        let (inline, with_tools) = match config.get("chat_template") {
            None | Some(Value::Null) => (None, None),
            Some(Value::String(s)) => (Some(s.clone()), None),
            Some(Value::Array(all)) => (named(all, "default"), named(all, "tool_use")),
            Some(_) => {
                return Err(fail("is neither a string nor a list of named ones".into()));
            }
        };
        let compile = |source: &str| {
            ChatTemplate::with_tokens(source, tokens.clone()).map_err(|e| match e {
                TextError::Template(problem) => fail(problem),
                other => other,
            })
        };
        let Some(source) = file.or(inline.as_deref()) else { return Ok(None) };
        let mut template = compile(source)?;
        // A file of its own is for all conversations.
        if let Some(source) = with_tools.filter(|_| file.is_none()) {
            template.with_tools = Some(Box::new(compile(&source)?));
        }
        Ok(Some(template))
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// What the template raises, and running out of its budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        self.render_with(messages, add_generation_prompt, None, &Map::new())
    }

    /// The same with tools, and with further arguments by the names that the template has for them.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tools: Option<&Value>,
        arguments: &Map<String, Value>,
    ) -> Result<String, TextError> {
        let now = crate::clock::unix_seconds();
        self.render_at(now, messages, add_generation_prompt, tools, arguments)
    }

    /// The same on another day than today: `now` is in seconds since 1970.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(
        &self,
        now: u64,
        messages: &[Message],
        add_generation_prompt: bool,
        tools: Option<&Value>,
        arguments: &Map<String, Value>,
    ) -> Result<String, TextError> {
        let own = context! {
            messages => messages.iter().map(Message::to_jinja).collect::<Vec<_>>(),
            add_generation_prompt => add_generation_prompt,
            tools => tools.map(to_jinja),
            strftime_now => template::strftime_now(now),
            documents => arguments.get("documents").map(to_jinja),
        };
        let tokens = self.tokens.iter().map(|(name, text)| (name.as_str(), Jinja::from(text.as_str())));
        let given = arguments.iter().map(|(name, value)| (name.as_str(), to_jinja(value)));
        let context = context! { ..own, ..Jinja::from_pairs(tokens), ..Jinja::from_pairs(given) };
        let mut out = Bounded::default();
        let fail = |e: minijinja::Error| TextError::Template(describe(&e));
        let template = self.environment.get_template("chat").map_err(fail)?;
        template.render_captured_to(context, &mut out).map_err(fail)?;
        String::from_utf8(out.0).map_err(|e| TextError::Template(e.to_string()))
    }
}

/// JSON as templates see it.
fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(on) => Jinja::from(*on),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(whole), _) => Jinja::from(whole),
            (None, Some(whole)) => Jinja::from(whole),
            (None, None) => Jinja::from(n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(all) => Jinja::from(all.iter().map(to_jinja).collect::<Vec<_>>()),
        Value::Object(map) => {
            Jinja::from_pairs(map.iter().map(|(name, value)| (name.as_str(), to_jinja(value))))
        }
    }
}

/// Compiles on a thread with a stack for it. One that takes too long is left alone: this happens when a
/// model is loaded, and the process then ends with the error.
fn compile_within(limit: Duration, source: String) -> Result<Environment<'static>, TextError> {
    let fail = |problem: &str| TextError::Template(problem.into());
    let (sender, compiled) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("template".into()).stack_size(COMPILE_STACK);
    // Whoever waited may be gone; then nobody wants the result.
    let work = move || drop(sender.send(compile(source)));
    thread.spawn(work).map_err(|e| fail(&format!("no thread to compile it: {e}")))?;
    compiled.recv_timeout(limit).map_err(|_| fail("it took too long to compile"))?
}

fn compile(source: String) -> Result<Environment<'static>, TextError> {
    let mut environment = Environment::new();
    // As HuggingFace's renderer is set.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| TextError::Template(e.to_string()))?);
    environment.set_fuel(Some(FUEL));
    template::install(&mut environment);
    environment.add_template_owned("chat", source).map_err(|e| TextError::Template(e.to_string()))?;
    Ok(environment)
}

fn describe(error: &minijinja::Error) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it did not end within {FUEL} steps"),
        ErrorKind::WriteFailure => format!("it wrote more than {MAX_OUTPUT} bytes"),
        _ => error.to_string(),
    }
}

/// Output that refuses to grow without end.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + buf.len() > MAX_OUTPUT {
            return Err(std::io::Error::other("too long"));
        }
        self.0.extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into(), ..Message::default() }
    }

    #[test]
    fn a_conversation_is_rendered_as_written() {
        let template = ChatTemplate::new(
            "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'user' %}\n[{{ m.content.strip() }}]\n    {% endif %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "<s>",
            "</s>",
        )
        .unwrap();
        let messages = [message("user", " a "), message("assistant", "b"), message("user", "c")];
        assert_eq!(template.render(&messages, true).unwrap(), "<s>[a]\n[c]\n>");
    }

    #[test]
    fn a_template_that_attacks_is_an_error() {
        for source in [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% for a in range(90000) %}{{ messages[0].content }}{% endfor %}",
            "{{ raise_exception('roles must alternate') }}",
            "{{ nothing.at.all() }}",
        ] {
            let template = ChatTemplate::new(source, "", "").unwrap();
            let long = [message("user", &"y".repeat(4096))];
            assert!(template.render(&long, true).is_err(), "{source}");
        }
        assert!(ChatTemplate::new("{% if %}", "", "").is_err());
    }

    #[test]
    fn a_repetition_is_bounded() {
        // Whatever the engine makes of it, it neither crashes nor takes the machine's memory.
        for source in ["{{ '-' * 10000000000 }}", "{{ 'ab' * 400000000 }}"] {
            let result = ChatTemplate::new(source, "", "").unwrap().render(&[], true);
            assert!(result.is_err(), "{source}");
        }
    }

    #[test]
    fn a_template_that_is_nested_without_end_is_an_error() {
        let most = |link: &str| link.repeat((MAX_SOURCE - 100) / link.len());
        for source in [
            format!("{{{{ {}1 }}}}", most("(")),
            format!("{{{{ {}1 }}}}", most("[")),
            format!("{{{{ {}1 }}}}", most("not ")),
            format!("{{{{ {}1 }}}}", most("-")),
            format!("{}{}", most("{% if true %}{% if true %}"), "{% endif %}"),
            format!("{{{{ a{} }}}}", most(".b")),
            format!("{{{{ a{} }}}}", most("()")),
            format!("{{{{ a{} }}}}", most("|abs")),
            format!("{{{{ 1{} }}}}", most("**1")),
            format!("{{{{ 1{} }}}}", most(" if 1 else 1")),
            most("{{ x }}") + &"x".repeat(MAX_SOURCE),
        ] {
            // Taken or not: what matters is that it comes back.
            let _ = ChatTemplate::new(&source, "", "").map(|t| t.render(&[], true).is_ok());
        }
        let chain = format!("{{{{ a{} }}}}", "~1".repeat(10_000));
        assert!(compile_within(Duration::from_millis(50), chain).is_err());
    }

    #[test]
    fn lines_may_end_as_on_any_system() {
        let template = ChatTemplate::new("a\r\n{{ 'b\r\nc' }}\rd", "", "").unwrap();
        assert_eq!(template.render(&[], true).unwrap(), "a\nb\nc\nd");
    }

    #[test]
    fn tools_are_defined_and_none() {
        let source = "{{ tools is none }} {{ documents is defined }} {% if tools %}x{% endif %}";
        assert_eq!(ChatTemplate::new(source, "", "").unwrap().render(&[], true).unwrap(), "True True ");
    }

    #[test]
    fn arguments_reach_the_template_and_hide_nothing_of_its_own() {
        let source = "{{ messages[0].reasoning_content }} {{ enable_thinking is false }} {{ bos_token }}";
        let mut arguments = Map::new();
        arguments.insert("enable_thinking".into(), false.into());
        arguments.insert("bos_token".into(), "other".into());
        let thought = Message { reasoning: Some("so".into()), ..message("assistant", "x") };
        let text =
            ChatTemplate::new(source, "<s>", "").unwrap().render_with(&[thought], true, None, &arguments);
        assert_eq!(text.unwrap(), "so True <s>");
    }

    #[test]
    fn training_marks_are_passed_over() {
        let source = "a\n{%- generation %} {{ add_generation_prompt }}{% endgeneration -%}\n b {% generation";
        let marked = &source[..source.len() - 13];
        assert_eq!(ChatTemplate::new(marked, "", "").unwrap().render(&[], true).unwrap(), "a Trueb ");
        assert!(ChatTemplate::new(source, "", "").is_err());
    }

    #[test]
    fn a_checkpoint_names_its_template_in_one_of_three_ways() {
        let message = [message("user", "x")];
        let render = |file: Option<&str>, config: Value| {
            let template = ChatTemplate::of_checkpoint(file, &config).unwrap();
            template.map(|t| t.render(&message, true).unwrap())
        };
        let config =
            serde_json::json!({"chat_template": "c{{ eos_token }}", "eos_token": {"content": "</s>"}});
        assert_eq!(render(None, config.clone()).as_deref(), Some("c</s>"));
        assert_eq!(render(Some("file{{ eos_token }}"), config).as_deref(), Some("file</s>"));
        let named =
            serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(render(None, serde_json::json!({"chat_template": named})).as_deref(), Some("d"));
        assert_eq!(render(None, serde_json::json!({})), None);
        let error = |file, config| ChatTemplate::of_checkpoint(file, &config).err().unwrap().to_string();
        for (config, problem) in
            [(serde_json::json!(3), "neither a string"), ("{% if %}".into(), "syntax error")]
        {
            let error = error(None, serde_json::json!({"chat_template": config}));
            assert!(
                error.contains("tokenizer_config.json, chat_template: ") && error.contains(problem),
                "{error}"
            );
        }
        let error = error(Some("{{ x | nothing }}{% endif %}"), serde_json::json!({}));
        assert!(error.contains("chat_template.jinja") && error.contains("chat:1"), "{error}");
    }
}
