//! Chat templates: a list of messages in, one prompt out, as the checkpoint's author wrote it.
//!
//! Templates are programs from a downloaded file, so they run under a budget of steps and of output,
//! and whatever goes wrong in one is an error of that request.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value as Jinja, context};
use serde_json::Value;

use super::TextError;

/// Steps a rendering may take; the largest real templates take a few thousand for a long conversation.
const FUEL: u64 = 2_000_000;
/// Bytes a rendering may write.
const MAX_OUTPUT: usize = 32 << 20;

/// One message of a conversation, its content already plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: String,
    pub content: String,
    pub name: Option<String>,
}

impl Message {
    fn to_jinja(&self) -> Jinja {
        let mut pairs = vec![("role", self.role.as_str()), ("content", self.content.as_str())];
        pairs.extend(self.name.as_deref().map(|n| ("name", n)));
        Jinja::from_pairs(pairs)
    }
}

/// A compiled template with the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// A syntax error.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<ChatTemplate, TextError> {
        let mut environment = Environment::new();
        // As HuggingFace's renderer is set.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TextError::Template(e.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned("chat", source.to_string())
            .map_err(|e| TextError::Template(e.to_string()))?;
        Ok(ChatTemplate { environment, bos_token: bos_token.into(), eos_token: eos_token.into() })
    }

    /// The template of a checkpoint: `chat_template.jinja`, else `chat_template` of the tokenizer's
    /// configuration (a string, or a list of named ones of which `default` is taken).
    ///
    /// # Errors
    /// A syntax error, or a `chat_template` of another form.
    pub fn of_checkpoint(file: Option<&str>, config: &Value) -> Result<Option<ChatTemplate>, TextError> {
        let token = |key: &str| match config.get(key) {
            Some(Value::String(s)) => s.clone(),
            Some(Value::Object(o)) => o.get("content").and_then(Value::as_str).unwrap_or_default().into(),
            _ => String::new(),
        };
        let inline = match config.get("chat_template") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) => Some(s.as_str()),
            Some(Value::Array(named)) => named
                .iter()
                .find(|t| t.get("name").is_some_and(|n| n == "default"))
                .and_then(|t| t.get("template")?.as_str()),
            Some(_) => {
                return Err(TextError::Template("chat_template is neither a string nor a list".into()));
            }
        };
        file.or(inline).map(|s| ChatTemplate::new(s, &token("bos_token"), &token("eos_token"))).transpose()
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// What the template raises, and running out of its budget.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let context = context! {
            messages => messages.iter().map(Message::to_jinja).collect::<Vec<_>>(),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        let mut out = Bounded::default();
        let fail = |e: minijinja::Error| TextError::Template(describe(&e));
        let template = self.environment.get_template("chat").map_err(fail)?;
        template.render_captured_to(context, &mut out).map_err(fail)?;
        String::from_utf8(out.0).map_err(|e| TextError::Template(e.to_string()))
    }
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

/// Today's date for templates that state it; the directives they use, others stay as written.
fn strftime_now(format: String) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = civil_date(crate::clock::unix_seconds() / 86_400);
    let name = MONTHS[month - 1];
    format
        .replace("%Y", &year.to_string())
        .replace("%m", &format!("{month:02}"))
        .replace("%d", &format!("{day:02}"))
        .replace("%B", name)
        .replace("%b", &name[..3])
}

/// Year, month and day of a day since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil_date(days: u64) -> (u64, usize, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into(), name: None }
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
    fn dates_are_right() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(20_780), (2026, 11, 23));
    }
}
