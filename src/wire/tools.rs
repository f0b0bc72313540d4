//! `tools` of a request, and which of them may or must be called.
//!
//! JSON in, names and schemas out; how a model writes calls, and whether it can, is the service's question.

use serde_json::{Value, json};

use super::fields::{Fields, RequestError, UnknownParameters, wrong};

/// Tools of a request, as OpenAI has it.
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments; without one it takes none.
    pub parameters: Option<Value>,
    /// The arguments must match the schema, or the request is refused.
    pub strict: bool,
    /// As the client wrote it: what the model is shown.
    pub written: Value,
}

/// Whether tools are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ToolChoice {
    #[default]
    Auto,
    /// At least one of those that may be called.
    Required,
    /// This one, once: its place among the tools.
    Named(usize),
}

/// What a request says of tools.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    pub all: Vec<Tool>,
    pub choice: ToolChoice,
    /// Which may be called, by their places.
    pub allowed: Vec<usize>,
    /// More than one call may be made in an answer.
    pub parallel: bool,
}

impl Tools {
    /// `None` without tools, and where none may be called: then the model is not shown them, either.
    ///
    /// # Errors
    /// A field that is not what it should be, a choice of a tool that is not there.
    pub fn read(f: &mut Fields, unknown: UnknownParameters) -> Result<Option<Tools>, RequestError> {
        let all = tools(f, unknown)?;
        let parallel = f.bool("parallel_tool_calls")?.unwrap_or(true);
        let choice = f.take("tool_choice");
        if all.is_empty() {
            return match choice {
                None => Ok(None),
                Some(Value::String(word)) if word == "none" || word == "auto" => Ok(None),
                Some(_) => {
                    Err(RequestError::invalid("tool_choice", "tool_choice needs tools to choose from"))
                }
            };
        }
        let every = (0..all.len()).collect();
        let (choice, allowed) = match choice {
            None => (ToolChoice::Auto, every),
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => (ToolChoice::Auto, every),
                "required" => (ToolChoice::Required, every),
                _ => return Err(wrong("tool_choice", CHOICES, &json!(word))),
            },
            Some(value @ Value::Object(_)) => {
                let mut f = Fields::of_value(value, "tool_choice")?;
                let (choice, allowed) = match f.required_string("type")?.as_str() {
                    "function" => {
                        let place = named(&mut f, &all, unknown)?;
                        (ToolChoice::Named(place), vec![place])
                    }
                    "allowed_tools" => allowed_tools(&mut f, &all, unknown)?,
                    "custom" => return Err(RequestError::unsupported(&f.path("type"), "a custom tool")),
                    kind => return Err(wrong(&f.path("type"), "function or allowed_tools", &json!(kind))),
                };
                f.finish(unknown)?;
                (choice, allowed)
            }
            Some(other) => return Err(wrong("tool_choice", CHOICES, &other)),
        };
        Ok(Some(Tools { all, choice, allowed, parallel }))
    }

    /// What the model is shown.
    pub fn written(&self) -> Value {
        self.all.iter().map(|tool| tool.written.clone()).collect()
    }
}

const CHOICES: &str = "none, auto, required, or an object that names a function or allowed tools";

fn tools(f: &mut Fields, unknown: UnknownParameters) -> Result<Vec<Tool>, RequestError> {
    let all = match f.take("tools") {
        None => return Ok(Vec::new()),
        Some(Value::Array(all)) if all.len() <= MAX_TOOLS => all,
        Some(other) => return Err(wrong("tools", &format!("an array of up to {MAX_TOOLS} tools"), &other)),
    };
    let mut tools: Vec<Tool> = Vec::with_capacity(all.len());
    for (i, written) in all.into_iter().enumerate() {
        let path = format!("tools[{i}]");
        let tool = tool(written, &path, unknown)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let param = format!("{path}.function.name");
            let message = format!("{param}: there are two tools named {:?}", tool.name);
            return Err(RequestError::invalid(&param, message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn tool(written: Value, path: &str, unknown: UnknownParameters) -> Result<Tool, RequestError> {
    let mut f = Fields::of_value(written.clone(), path)?;
    let kind_path = f.path("type");
    match f.required_string("type")?.as_str() {
        "function" => {}
        "custom" => return Err(RequestError::unsupported(&kind_path, "a custom tool")),
        kind => return Err(wrong(&kind_path, "function", &json!(kind))),
    }
    let mut function = f.object("function")?;
    f.finish(unknown)?;
    let name = function.required_string("name")?;
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fine) {
        let expected = format!("1 to {MAX_NAME} letters, digits, _ or -");
        return Err(wrong(&function.path("name"), &expected, &json!(name)));
    }
    function.string("description")?;
    let strict = function.bool("strict")?.unwrap_or(false);
    let schema_path = function.path("parameters");
    let parameters = match function.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => match schema.get("type") {
            None => Some(schema),
            Some(kind) if kind == "object" => Some(schema),
            Some(kind) => {
                let message = format!("{schema_path} must be a schema of type \"object\", got {kind}");
                let message = message.chars().take(200).collect::<String>();
                let code = Some("invalid_function_parameters");
                return Err(RequestError { message, param: Some(schema_path), code });
            }
        },
        Some(other) => return Err(wrong(&schema_path, "a JSON schema of an object", &other)),
    };
    function.finish(unknown)?;
    Ok(Tool { name, parameters, strict, written })
}

/// The place of the tool that `function.name` names.
fn named(f: &mut Fields, all: &[Tool], unknown: UnknownParameters) -> Result<usize, RequestError> {
    let mut function = f.object("function")?;
    let (name, path) = (function.required_string("name")?, function.path("name"));
    function.finish(unknown)?;
    all.iter()
        .position(|tool| tool.name == name)
        .ok_or_else(|| wrong(&path, "the name of one of the tools", &json!(name)))
}

fn allowed_tools(
    f: &mut Fields,
    all: &[Tool],
    unknown: UnknownParameters,
) -> Result<(ToolChoice, Vec<usize>), RequestError> {
    let mut f = f.object("allowed_tools")?;
    let mode_path = f.path("mode");
    let choice = match f.required_string("mode")?.as_str() {
        "auto" => ToolChoice::Auto,
        "required" => ToolChoice::Required,
        mode => return Err(wrong(&mode_path, "auto or required", &json!(mode))),
    };
    let path = f.path("tools");
    let tools = match f.take("tools") {
        Some(Value::Array(tools)) if (1..=MAX_TOOLS).contains(&tools.len()) => tools,
        None => return Err(RequestError::invalid(&path, format!("{path} is required"))),
        Some(other) => return Err(wrong(&path, "an array of some of the tools", &other)),
    };
    let mut allowed = Vec::with_capacity(tools.len());
    for (i, value) in tools.into_iter().enumerate() {
        let mut tool = Fields::of_value(value, &format!("{path}[{i}]"))?;
        let kind_path = tool.path("type");
        let kind = tool.required_string("type")?;
        if kind != "function" {
            return Err(wrong(&kind_path, "function", &json!(kind)));
        }
        allowed.push(named(&mut tool, all, unknown)?);
        tool.finish(unknown)?;
    }
    allowed.sort_unstable();
    allowed.dedup();
    f.finish(unknown)?;
    Ok((choice, allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Option<Tools>, RequestError> {
        let mut f = Fields::of_body(body.to_string().as_bytes())?;
        let tools = Tools::read(&mut f, UnknownParameters::Refuse)?;
        f.finish(UnknownParameters::Refuse)?;
        Ok(tools)
    }

    fn function(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
    }

    /// Two tools and this beside.
    fn with(extra: Value) -> Value {
        let mut body = json!({"tools": [function("f"), function("g")]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    #[test]
    fn each_way_to_choose() {
        let choice = |extra: Value| read(with(extra)).unwrap().map(|t| (t.choice, t.allowed, t.parallel));
        let name = |name: &str| json!({"type": "function", "function": {"name": name}});
        assert_eq!(choice(json!({})), Some((ToolChoice::Auto, vec![0, 1], true)));
        assert_eq!(
            choice(json!({"tool_choice": "auto", "parallel_tool_calls": false})),
            Some((ToolChoice::Auto, vec![0, 1], false))
        );
        assert_eq!(
            choice(json!({"tool_choice": "required"})),
            Some((ToolChoice::Required, vec![0, 1], true))
        );
        assert_eq!(choice(json!({"tool_choice": "none"})), None);
        assert_eq!(choice(json!({"tool_choice": name("g")})), Some((ToolChoice::Named(1), vec![1], true)));
        let allowed = |mode: &str| json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [name("g"), name("g")]}}});
        assert_eq!(choice(allowed("auto")), Some((ToolChoice::Auto, vec![1], true)));
        assert_eq!(choice(allowed("required")), Some((ToolChoice::Required, vec![1], true)));
        assert_eq!(read(json!({"tools": [], "tool_choice": "auto"})).unwrap(), None);
        let tools = read(with(json!({}))).unwrap().unwrap();
        assert_eq!(tools.written(), json!([function("f"), function("g")]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = |inner: Value| json!({"tools": [{"type": "function", "function": inner}]});
        for (body, param) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": [1]}), "tools[0]"),
            (json!({"tools": [{"type": "custom", "custom": {}}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (one(json!({"name": "a b"})), "tools[0].function.name"),
            (one(json!({"name": "a", "parameters": []})), "tools[0].function.parameters"),
            (one(json!({"name": "a", "parameters": {"type": "string"}})), "tools[0].function.parameters"),
            (
                one(json!({"name": "a", "parameters": {"type": ["object", "null"]}})),
                "tools[0].function.parameters",
            ),
            (one(json!({"name": "a", "strict": 1})), "tools[0].function.strict"),
            (one(json!({"name": "a", "more": 1})), "tools[0].function.more"),
            (json!({"tools": [function("f"), function("f")]}), "tools[1].function.name"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (with(json!({"tool_choice": "any"})), "tool_choice"),
            (with(json!({"tool_choice": 1})), "tool_choice"),
            (
                with(json!({"tool_choice": {"type": "function", "function": {"name": "h"}}})),
                "tool_choice.function.name",
            ),
            (
                with(
                    json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": []}}}),
                ),
                "tool_choice.allowed_tools.mode",
            ),
            (
                with(
                    json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
                ),
                "tool_choice.allowed_tools.tools",
            ),
            (with(json!({"parallel_tool_calls": "no"})), "parallel_tool_calls"),
        ] {
            assert_eq!(read(body.clone()).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        let many: Vec<Value> = (0..=MAX_TOOLS).map(|i| function(&format!("f{i}"))).collect();
        assert_eq!(read(json!({"tools": many})).unwrap_err().param.as_deref(), Some("tools"));
    }
}
