//! One call as JSON, `{"name": "f", "arguments": {…}}`, read as it comes: its name, then its arguments as they are
//! written, character by character.
//!
//! Members may come in any order; `parameters` is another word for `arguments`. What the arguments hold is not looked at:
//! a client sees what the model wrote.

/// What is there of a call.
#[derive(Debug, Default)]
pub struct CallObject {
    at: At,
    /// The arguments stand alone, without an object around them.
    alone: bool,
    /// The text of the member's name, or of a value that is needed whole.
    text: String,
    value: Value,
    name: Option<String>,
    /// Arguments that have not been taken.
    arguments: String,
    has_arguments: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum At {
    #[default]
    Open,
    /// The first member's name, or the end.
    FirstKey,
    Key,
    InKey,
    Colon,
    BeforeValue(Member),
    InValue(Member),
    Comma,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Member {
    Name,
    Arguments,
    /// Arguments that are wanted whole: a text that holds JSON, or nothing.
    Whole,
    Other,
}

/// How far a text has brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// All of the text is read, and there is more to come.
    More,
    /// It ended with this many bytes of the text.
    Done(usize),
    /// What comes after this many bytes of the text cannot be.
    Broken(usize),
}

/// Where a JSON value ends, without looking at what it says.
#[derive(Debug, Default)]
struct Value {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

#[derive(PartialEq)]
enum End {
    No,
    /// With this character.
    Here,
    /// Before it.
    Before,
}

impl Value {
    fn push(&mut self, c: char) -> End {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return if self.in_string || self.depth > 0 { End::No } else { End::Here };
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' | ',' if self.depth == 0 => return End::Before,
            '}' | ']' => {
                self.depth -= 1;
                return if self.depth == 0 { End::Here } else { End::No };
            }
            c if self.depth == 0 && c.is_ascii_whitespace() => return End::Before,
            _ => {}
        }
        End::No
    }
}

impl CallObject {
    /// A call whose name is known: what follows is the value of its arguments.
    pub fn of_name(name: String) -> CallObject {
        CallObject { alone: true, name: Some(name), ..CallObject::default() }
    }

    /// The tool's name, once it is there.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// True once its arguments have begun.
    pub fn has_arguments(&self) -> bool {
        self.has_arguments
    }

    /// Arguments that have come since the last time; of a call that is complete `{}`, if there are none.
    pub fn take_arguments(&mut self) -> String {
        if self.at == At::Done && !self.has_arguments {
            self.has_arguments = true;
            return "{}".into();
        }
        std::mem::take(&mut self.arguments)
    }

    pub fn push(&mut self, text: &str) -> Progress {
        for (i, c) in text.char_indices() {
            match self.take(c) {
                Some(true) => return Progress::Done(i + c.len_utf8()),
                Some(false) => {}
                None => return Progress::Broken(i),
            }
        }
        Progress::More
    }

    /// True when the call ends with this character, `None` when it cannot be.
    fn take(&mut self, c: char) -> Option<bool> {
        let blank = c.is_ascii_whitespace();
        match self.at {
            At::Open if blank => {}
            At::Open if self.alone && c == '{' => {
                self.begin(Member::Arguments, c)?;
                return self.in_value(c);
            }
            At::Open if c == '{' => self.at = At::FirstKey,
            At::FirstKey | At::Key if blank => {}
            At::FirstKey | At::Key if c == '"' => {
                (self.at, self.value) = (At::InKey, Value { in_string: true, ..Value::default() });
                self.text = "\"".into();
            }
            At::FirstKey if c == '}' => self.at = At::Done,
            At::InKey => {
                self.text.push(c);
                if self.value.push(c) == End::Here {
                    self.at = At::Colon;
                }
            }
            At::Colon if blank => {}
            At::Colon if c == ':' => self.at = At::BeforeValue(self.member()),
            At::BeforeValue(_) if blank => {}
            At::BeforeValue(member) => {
                self.begin(member, c)?;
                return self.in_value(c);
            }
            At::InValue(_) => return self.in_value(c),
            At::Comma if blank => {}
            At::Comma if c == ',' => self.at = At::Key,
            At::Comma if c == '}' => self.at = At::Done,
            _ => return None,
        }
        Some(self.at == At::Done)
    }

    fn member(&self) -> Member {
        match serde_json::from_str::<String>(&self.text).as_deref() {
            Ok("name") if self.name.is_none() => Member::Name,
            Ok("arguments" | "parameters") if !self.has_arguments => Member::Arguments,
            _ => Member::Other,
        }
    }

    fn begin(&mut self, member: Member, c: char) -> Option<()> {
        let member = match member {
            Member::Name if c != '"' => return None,
            Member::Arguments if c != '{' => Member::Whole,
            member => member,
        };
        if matches!(c, '}' | ']' | ',' | ':') {
            return None;
        }
        self.has_arguments |= matches!(member, Member::Arguments | Member::Whole);
        (self.at, self.value) = (At::InValue(member), Value::default());
        self.text.clear();
        Some(())
    }

    fn in_value(&mut self, c: char) -> Option<bool> {
        let At::InValue(member) = self.at else { return None };
        let end = self.value.push(c);
        if end != End::Before {
            match member {
                Member::Arguments => self.arguments.push(c),
                Member::Name | Member::Whole => self.text.push(c),
                Member::Other => {}
            }
        }
        if end == End::No {
            return Some(false);
        }
        match member {
            Member::Name => self.name = Some(serde_json::from_str(&self.text).ok()?),
            Member::Whole => self.arguments = whole(&self.text),
            _ => {}
        }
        self.at = if self.alone { At::Done } else { At::Comma };
        match end {
            End::Before => self.take(c),
            _ => Some(self.alone),
        }
    }
}

/// Arguments that are no object: JSON inside a text, or none at all.
fn whole(text: &str) -> String {
    let inner: Option<String> = serde_json::from_str(text).ok();
    match inner.as_deref().unwrap_or(text).trim() {
        "" | "null" => "{}".into(),
        arguments => arguments.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and arguments of a call that comes in pieces of so many bytes, and where it ended.
    fn read(mut call: CallObject, text: &str, step: usize) -> (Option<String>, String, Progress) {
        let (mut arguments, mut read) = (String::new(), 0);
        while read < text.len() {
            let to = text.ceil_char_boundary((read + step).min(text.len()));
            let progress = call.push(&text[read..to]);
            arguments += &call.take_arguments();
            match progress {
                Progress::More => read = to,
                Progress::Done(n) => return (call.name, arguments, Progress::Done(read + n)),
                Progress::Broken(n) => return (call.name, arguments, Progress::Broken(read + n)),
            }
        }
        (call.name, arguments, Progress::More)
    }

    #[test]
    fn name_and_arguments_are_found_in_any_order() {
        for (text, arguments) in [
            (
                r#"{"name": "f", "arguments": {"a": [1, {"b": "}\"]"}], "é": null}}"#,
                r#"{"a": [1, {"b": "}\"]"}], "é": null}"#,
            ),
            (r#" { "arguments" : {"a":{}} , "type":"function","name":"f" }"#, r#"{"a":{}}"#),
            (r#"{"name": "f", "parameters": {}}"#, "{}"),
            (r#"{"name": "f"}"#, "{}"),
            (r#"{"name": "f", "arguments": null}"#, "{}"),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, r#"{"a": 1}"#),
            (r#"{"name": "f", "arguments": ""}"#, "{}"),
            (r#"{"name": "\u0066", "id": 7.5e3, "x": [true], "arguments": [1]}"#, "[1]"),
        ] {
            for step in 1..=text.len() {
                let found = read(CallObject::default(), &format!("{text} and on"), step);
                let expected = (Some("f".to_string()), arguments.to_string(), Progress::Done(text.len()));
                assert_eq!(found, expected, "{text} by {step}");
            }
        }
    }

    #[test]
    fn what_is_no_call_breaks_where_it_stops_being_one() {
        for (text, at) in [
            ("x", 0),
            ("{x", 1),
            (r#"{"name" 1"#, 8),
            (r#"{"name": 1"#, 9),
            (r#"{"name": "f" "#, usize::MAX),
            (r#"{"name": "f" x"#, 13),
            (r#"{"name": "f",}"#, 13),
            (r#"{"name": }"#, 9),
        ] {
            let expected = if at == usize::MAX { Progress::More } else { Progress::Broken(at) };
            for step in 1..=text.len() {
                assert_eq!(read(CallObject::default(), text, step).2, expected, "{text}");
            }
        }
        // It ends, and is no call: it names nothing.
        assert_eq!(read(CallObject::default(), "{}", 1).0, None);
    }

    #[test]
    fn arguments_may_stand_alone() {
        let found = read(CallObject::of_name("f".into()), " {\"a\": {}}[TOOL", 3);
        assert_eq!(found, (Some("f".into()), "{\"a\": {}}".into(), Progress::Done(10)));
        assert_eq!(read(CallObject::of_name("f".into()), "x", 1).2, Progress::Broken(0));
    }
}
